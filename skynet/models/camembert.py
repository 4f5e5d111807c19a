"""CamemBERT: RoBERTa with a French vocabulary."""

from __future__ import annotations

from skynet.models.roberta import REFUSED, architecture

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "camembert"
