"""What a layer mixes tokens with, and what it keeps of a sequence for that, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal

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
    """Base class. `sums`: all-reduces within the mixer, before that of its side."""

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


@dataclass(frozen=True)
class Mamba2(Mixer):
    """A selective state space (Dao and Gu, 2024, arXiv:2405.21060).

    Units: "mamba_heads", "mamba_groups", which serve several heads, and "mamba_steps", the time
    step of each head.

    head_size: channels of a head.
    state_size: of each channel.
    kernel: tokens that the convolution sees.
    activation: after the convolution.
    norm: RMS norm over the channels of a group, after the product with the gate or before it.
    step_limits: of the time steps of a prompt's tokens.
    """

    head_size: int
    state_size: int
    kernel: int
    activation: str = "silu"
    norm: Literal["after_gate", "before_gate"] | None = "after_gate"
    step_limits: tuple[float, float] = (0.0, inf)

    @property
    def sums(self) -> int:
        """Several shards may have heads of a group, whose mean square then takes an all-reduce."""
        return int(self.norm is not None)

    @property
    def is_recurrent(self) -> bool:
        return True

    def kept(self, items: Items, head_dim: int) -> Kept:
        heads, groups = items("mamba_heads"), items("mamba_groups")
        channels = heads * self.head_size + 2 * groups * self.state_size
        return Kept(state=((channels, self.kernel - 1), (heads, self.head_size, self.state_size)))


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
