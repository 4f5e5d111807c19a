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
    scales: of each vector in q8.
    state: the shapes of the float32 tensors of a recurrent state.
    """

    vectors: int = 0
    size: int = 0
    state: tuple[tuple[int, ...], ...] = ()
    scales: int = 1


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

    def multiplied(self, items: Items, head_dim: int) -> int:
        """The multiply-adds of a decoding step for each token that it sees."""
        return 2 * items("heads") * head_dim


@dataclass(frozen=True)
class SelfAttention(Mixer):
    """Keys and values of every token; the other fields are the architecture's."""

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept(2 * items("kv_heads"), head_dim)


SELF_ATTENTION = SelfAttention()


@dataclass(frozen=True)
class Latent(Mixer):
    """Latent attention (DeepSeek-V2, 2024, arXiv:2405.04434, section 2.1): keys and values of all
    heads are made of one latent of each token, and of a rotated key that all heads share.

    Every shard keeps both; heads are cut. A head's query, and its key, is `key` numbers, then
    `rotary` rotated ones; `kv_b` makes a head's first `key` numbers and its `value` of a latent.

    norm_eps: of the norms of latents.
    growth: (factor, length): queries are multiplied by 1 + factor * log(1 + position // length).
    """

    rank: int  # numbers of a latent
    rotary: int
    key: int
    value: int
    norm_eps: float = 1e-6
    growth: tuple[float, int] | None = None

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept(1, self.rank + self.rotary, scales=2)

    def multiplied(self, items: Items, head_dim: int) -> int:
        return items("heads") * (2 * self.rank + self.rotary)


@dataclass(frozen=True)
class ShortConvolution(Mixer):
    """A gated convolution over the last `kernel` tokens, of channels that shards divide."""

    kernel: int

    @property
    def is_recurrent(self) -> bool:
        return True

    def kept(self, items: Items, head_dim: int) -> Kept:
        return Kept(state=((items("channels"), self.kernel - 1),))
