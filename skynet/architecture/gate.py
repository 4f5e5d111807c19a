"""How a gated MLP combines its two products, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClampedGate:
    """(up + 1) x gate x sigmoid(alpha x gate) of clamped products: gate to at most `limit`, up to
    [-limit, limit]."""

    limit: float
    alpha: float
