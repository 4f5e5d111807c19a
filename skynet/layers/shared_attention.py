"""Attention of a layer that has queries only: its keys and values are those of an earlier layer."""

from __future__ import annotations

import torch

from skynet.architecture.mixers import SharedAttention
from skynet.architecture.window import Window
from skynet.errors import StepFailed
from skynet.kernels.steps import Program
from skynet.layers.attention import Attending, attend, kernel_of, kv_of_queries
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce, load_head_norm
from skynet.layers.rope import rotate
from skynet.layers.slot_state import SlotState
from skynet.layers.weights import Loader


class QueriesOnly:
    """Q product, norm and rope of heads, and the O product.

    cache: of layer `source`, or of this stage's copy of it; see `SharedKV`.
    """

    states: tuple[SlotState, ...] = ()
    cache: KVCache | None

    def __init__(self, load: Loader, kv: KVLayout, layer: int, mixer: SharedAttention) -> None:
        arch = load.arch
        self.source, self.cache = mixer.source, None
        self._window = arch.windows[layer]
        self.windows: tuple[Window, ...] = (self._window,)
        self._head_dim = arch.head_dim
        self._how = Attending(
            arch.attention_scale,
            kernel_of(arch.attention_cap),
            kv_of_query=kv_of_queries(arch, load.part, load.device),
        )
        self._queries = load.linear("q", layer=layer)
        self._norm = load_head_norm(load, layer, ("q_norm",)) if arch.qk_norm else None
        rope = arch.ropes[layer]
        self._rope = None if rope is None else arch.rope_kinds.index(rope)
        self._rotary_dims = arch.head_dim if rope is None else rope.dims
        self._out = load.linear("o", layer=layer, bias=False)
        parts = (self._queries, self._norm, self._out)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        if self.cache is None:
            raise StepFailed(f"this layer has not been given the keys of layer {self.source}")
        queries = self._queries(x).unflatten(1, (-1, self._head_dim))
        full = queries.float()
        if self._norm is not None:
            full = self._norm(full)
        if self._rope is not None:
            rotate(full[:, :, : self._rotary_dims], context.ropes[self._rope])
        calls = context.attends[self._window]
        return self._out(attend(full.to(x.dtype), self.cache, calls, self._how))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        return False
