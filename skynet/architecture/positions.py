"""How a model tells where tokens are, as data: ropes, biases of the scores, sines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864) and how it is stretched."""

    dims: int  # of each head, from its first, that are turned
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    theta: float = 10_000.0
    adjacent: bool = False  # checkpoints have the two numbers that turn together side by side
    factor: float = 1.0
    original_positions: int = 0  # of the pretraining, where a rope is stretched beyond them
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn, longrope: cosines and sines are multiplied by it
    divisors: tuple[float, ...] = ()  # longrope: of each frequency
    # longrope: the same in sequences of more than `original_positions`.
    long_divisors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Alibi:
    """Attention scores that fall with distance, by a slope a head (Press et al., 2021,
    arXiv:2108.12409)."""

    scale: float = 1.0  # the scores' bias is multiplied by it
    bfloat16: bool = False  # slopes and biases are rounded as Falcon was trained with


@dataclass(frozen=True)
class Relative:
    """A learned bias of the scores by how far a key is from a query, in buckets that widen with
    the distance (Raffel et al., 2020, arXiv:1910.10683, section 2.1). One table for all layers."""

    buckets: int
    max_distance: int  # all that is farther is in the last bucket


@dataclass(frozen=True)
class Sinusoids:
    """Positions as sines, then cosines (Vaswani et al., 2017, arXiv:1706.03762, section 3.5).

    Frequencies fall from 1 by 10000^(1 / divisor) each.
    """

    divisor: int
    single: bool = False  # made in float32 from the first: angles far out are off, as in training
