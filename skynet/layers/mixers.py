"""The module that computes each kind of mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from skynet.architecture.mixers import (
    GatedDelta,
    Latent,
    Mamba2,
    Mixer,
    SelfAttention,
    SharedAttention,
    ShortConvolution,
)
from skynet.architecture.window import Window
from skynet.layers.block import Module
from skynet.layers.cache import KVLayout
from skynet.layers.convolution import ShortConvolutionMixer
from skynet.layers.gated_delta import GatedDeltaMixer
from skynet.layers.latent_attention import LatentAttention
from skynet.layers.mamba2 import Mamba2Mixer
from skynet.layers.self_attention import Attention
from skynet.layers.shared_attention import QueriesOnly
from skynet.layers.slot_state import SlotState
from skynet.layers.weights import Loader


class MixerModule(Module, Protocol):
    """Mixes the tokens of each sequence, and keeps what later tokens need in its slot.

    states: what it keeps.
    """

    states: tuple[SlotState, ...]

    @property
    def windows(self) -> tuple[Window, ...]:
        """Those that it attends with."""
        ...


# load: of the layer's kind; the layer's number; its mixer.
Make = Callable[[Loader, KVLayout, int, Any], MixerModule]

_MAKE: dict[type[Mixer], Make] = {
    SelfAttention: Attention,
    SharedAttention: QueriesOnly,
    Latent: LatentAttention,
    ShortConvolution: ShortConvolutionMixer,
    Mamba2: Mamba2Mixer,
    GatedDelta: GatedDeltaMixer,
}


def load_mixer(load: Loader, kv: KVLayout, layer: int, mixer: Mixer) -> MixerModule:
    """The mixer of a layer; `load` is of the layer's kind."""
    return _MAKE[type(mixer)](load, kv, layer, mixer)
