"""What a layer mixes tokens with, and what it keeps of a sequence for that, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

STATES = 2  # a recurrent state is kept before and after the last step
Items = Callable[[str], int]  # how many items of a unit a shard has


@dataclass(frozen=True)
class Kept:
    """What one layer of a shard keeps of a sequence.

    vectors: of each token, `size` numbers each, in the dtype of keys and values.
    state: the shapes of the float32 tensors of a recurrent state.
    """

    vectors: int = 0
    size: int = 0
    state: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Mixer:
    """Base class. `sums`: all-reduces that it needs before its own."""

    @property
    def sums(self) -> int:
        return 0

    @property
    def is_recurrent(self) -> bool:
        """Whether it keeps a state of its last token, instead of something of every token."""
        return False

    def kept(self, items: Items, head_dim: int) -> Kept:
        """What a shard with so many items of each unit keeps of a sequence.

        head_dim: of the architecture's attention.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SelfAttention(Mixer):
    """Keys and values of every token; the other fields are the architecture's.

    values_are_keys: one product gives both; keys are then normed and rotated.
    normed_values: each value is divided by its root mean square.
    """

    values_are_keys: bool = False
    normed_values: bool = False

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept(2 * items("kv_heads"), head_dim)


SELF_ATTENTION = SelfAttention()


@dataclass(frozen=True)
class SharedAttention(Mixer):
    """Queries alone: keys and values are those of layer `source`, with as many and as large heads.

    A stage without that layer keeps them once for all of its layers: see
    `skynet/planning/carried.py`.
    """

    source: int

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept()


@dataclass(frozen=True)
class ShortConvolution(Mixer):
    """A gated convolution over the last `kernel` tokens, of channels that shards divide."""

    kernel: int

    @property
    def is_recurrent(self) -> bool:
        return True

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept(state=((items("channels"), self.kernel - 1),))
