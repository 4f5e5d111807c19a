"""Position encodings, as data: ropes, biases of the attention scores, sines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864) and how it is scaled."""

    dims: int  # rotated dimensions of each head, from its first
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"] = (
        "default"
    )
    theta: float = 10_000.0
    adjacent: bool = False  # the two dimensions of a rotated pair are neighbours in checkpoints
    factor: float = 1.0
    original_positions: int = 0  # of the pretraining, where a rope is scaled beyond them
    rotated: int = 0  # proportional: pairs; the later ones stay as they are
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn, longrope: multiplies cosines and sines
    divisors: tuple[float, ...] = ()  # longrope: one for each frequency
    # longrope: those for sequences of more than `original_positions`; none: the same ones.
    long_divisors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Alibi:
    """Attention scores that fall with distance, by a slope per head (Press et al., 2021,
    arXiv:2108.12409)."""

    scale: float = 1.0  # multiplies the bias
    bfloat16: bool = False  # round slopes and biases, as in Falcon's training


@dataclass(frozen=True)
class Relative:
    """A learned bias of the scores by the distance from query to key, in buckets that widen with it
    (Raffel et al., 2020, arXiv:1910.10683, section 2.1). One table for all layers."""

    buckets: int
    max_distance: int  # larger distances are in the last bucket


@dataclass(frozen=True)
class Disentangled:
    """Scores between contents and distances (He et al., 2021, arXiv:2006.03654, section 3.1).

    A table has a vector for each bucket of distances, which the layers' products make a query and a
    key of.
    """

    span: int  # half of the rows: distances in [-span, span) have one each, or a bucket
    max_distance: int | None  # buckets widen up to it; None: one distance each
    to_keys: bool  # queries of tokens meet keys of distances
    to_queries: bool  # queries of distances meet keys of tokens


@dataclass(frozen=True)
class Sinusoids:
    """Positions as sines, then cosines (Vaswani et al., 2017, arXiv:1706.03762, section 3.5).

    Frequencies fall from 1 by 10000^(1 / divisor) each.
    """

    divisor: int
    single: bool = False  # all in float32: large angles are inexact, as in training


@dataclass(frozen=True)
class Temperature:
    """Queries grow with their position (Nakanishi, 2025, arXiv:2501.19399): they are multiplied by
    1 + scale x log(1 + floor((position + 1) / interval))."""

    interval: int
    scale: float
