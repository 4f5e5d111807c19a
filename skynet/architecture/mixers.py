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
    """Keys and values of every token; the other fields are the architecture's."""

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept(2 * items("kv_heads"), head_dim)


SELF_ATTENTION = SelfAttention()


@dataclass(frozen=True)
class ShortConvolution(Mixer):
    """A gated convolution over the last `kernel` tokens, of channels that shards divide."""

    kernel: int

    @property
    def is_recurrent(self) -> bool:
        return True

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept(state=((items("channels"), self.kernel - 1),))


@dataclass(frozen=True)
class GatedDelta(Mixer):
    """A gated delta net (Yang et al., 2024, arXiv:2412.06464), cut by value heads.

    Its dimensions are "value_heads", the "key_heads" that serve them, and "gates", one of each
    value head.

    kernel: of the convolution of queries, keys and values.
    key_dim, value_dim: of a head; its state is a matrix of both.
    beta_scale: how far a token may overwrite what its key stands for: 1: wholly; 2: beyond.
    norm_eps: of the norm of each head's output.
    """

    kernel: int
    key_dim: int
    value_dim: int
    beta_scale: float
    norm_eps: float

    @property
    def is_recurrent(self) -> bool:
        return True

    def kept(self, items: Items, head_dim: int) -> Kept:
        heads = items("value_heads")
        if not heads:
            return Kept()
        channels = 2 * items("key_heads") * self.key_dim + heads * self.value_dim
        return Kept(state=((channels, self.kernel - 1), (heads, self.key_dim, self.value_dim)))
