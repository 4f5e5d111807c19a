"""What computes a shard: of a family that has a file, or of one whose layers are Transformers'."""

from __future__ import annotations

import logging

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.layers.shard_model import ShardModel

logger = logging.getLogger(__name__)


def shard_class(arch: Architecture) -> type[ShardModel]:
    """The class to load a shard of this model with; that it is slower than others is logged."""
    if not isinstance(arch, TransformersArchitecture):
        return ShardModel
    from skynet.transformers_backend.shard import (
        TransformersShard,  # seconds, and only these models need it
    )

    logger.warning("%s", arch.notice)
    return TransformersShard
