"""Self-attention of one shard: its heads over their KV slots; the result is a partial."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from skynet.kernels.steps import MIXED, WIDE, HeadLayout, Program
from skynet.layers.attention import Kernel, attend, capped_attention, store
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.context import StepContext
from skynet.layers.disentangled import load_distances
from skynet.layers.encoder_attention import attend_text_batches
from skynet.layers.norm import AllHeadsNorm, AllReduce, Norm, load_head_norm
from skynet.layers.rope import rotate
from skynet.layers.slot_state import SlotState
from skynet.layers.weights import Loader


class Attention:
    """Fused Q K V product, norm and rope of heads, KV slots, and the O product."""

    def __init__(self, load: Loader, kv: KVLayout, layer: int) -> None:
        arch, part = load.arch, load.part
        self._window = arch.windows[layer]
        self.windows: tuple[int | None, ...] = (self._window,)
        self._scale, self._head_dim = arch.attention_scale, arch.head_dim
        self._clip = arch.qkv_clip
        self._heads, self._kv_heads = part.heads.size, part.kv_heads.size
        gate = ("q_gate",) if load.has("q_gate") else ()
        self._gated = bool(gate)
        self._qkv = load.linear("q", "k", "v", *gate, layer=layer)
        self._head_norm: Norm | None = None
        self._all_heads_norm: AllHeadsNorm | None = None
        if arch.qk_norm == "head":
            self._head_norm = load_head_norm(load, layer)
        elif arch.qk_norm == "all":
            self._all_heads_norm = AllHeadsNorm(load, layer)
        rope = arch.ropes[layer]
        self._rope = None if rope is None else arch.rope_kinds.index(rope)
        self._rotary_dims = None if rope is None or rope.dims == arch.head_dim else rope.dims
        self._changes_heads = rope is not None or arch.qk_norm is not None
        self._biased = bool(arch.alibi or arch.relative)
        self._cap = arch.attention_cap
        self._kernel: Kernel = F.scaled_dot_product_attention
        if self._cap is not None:
            self._kernel = partial(capped_attention, cap=self._cap)
        self._sinks: torch.Tensor | None = None
        if load.has("sinks", layer):
            self._sinks = load.float32.cut("sinks", layer).view(self._kv_heads, -1)
        self._out = load.linear("o", layer=layer, bias=False)
        self._cache: KVCache | None = None  # an encoder needs none
        if not arch.bidirectional:
            kv_heads = 2 * self._kv_heads
            self._cache = KVCache(kv, kv_heads, arch.head_dim, load.dtype, load.device)
        self.states: tuple[SlotState, ...] = () if self._cache is None else (self._cache,)
        self._distances = load_distances(load, self._qkv, layer)
        parts = (
            self._qkv,
            self._head_norm,
            self._all_heads_norm,
            self._sinks,
            self._out,
            self._distances,
        )
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """Normed `x` (tokens, hidden) to this shard's partial of the same shape and dtype."""
        qkv = self._qkv(x).unflatten(1, (-1, self._head_dim))
        if self._clip is not None:
            qkv.clamp_(-self._clip, self._clip)
        if self._changes_heads:
            self._change(qkv[:, : self._heads + self._kv_heads], context, all_reduce)
        if self._cache is None:
            q, k, v = qkv.split([self._heads, self._kv_heads, self._kv_heads], dim=1)
            batches = context.text_batches[self._window]
            return self._out(attend_text_batches(q, k, v, batches, self._scale, self._distances))
        kv_end = self._heads + 2 * self._kv_heads
        store(self._cache, qkv[:, self._heads : kv_end], context)
        calls = context.attends[self._window]
        queries = qkv[:, : self._heads]
        mixed = attend(queries, self._cache, calls, self._scale, self._kernel, self._sinks)
        if self._gated:
            mixed = mixed.mul_(qkv[:, kv_end:].flatten(1).sigmoid())
        return self._out(mixed)

    def emit(self, program: Program, source: int, target: int) -> bool:
        """Add the operations from `source`, normed, to the partial; False: not supported."""
        is_plain = not self._biased and self._all_heads_norm is None and self._sinks is None
        is_plain = is_plain and self._clip is None and not self._gated
        if self._cache is None or not is_plain:
            return False
        norm = None if self._head_norm is None else self._head_norm.weights
        layout = HeadLayout(
            self._heads,
            self._kv_heads,
            self._head_dim,
            self._scale,
            self._window,
            self._rope,
            self._rotary_dims or self._head_dim,
            self._cap,
            norm,
        )
        return (
            (norm is not None or self._head_norm is None)
            and self._qkv.emit(program, (source, WIDE))
            and program.attention(layout, self._cache.values, self._cache.scales, (WIDE, MIXED))
            and self._out.emit(program, (MIXED, target))
        )

    def _change(self, heads: torch.Tensor, context: StepContext, all_reduce: AllReduce) -> None:
        """Norm and rope of Q and K (tokens, heads, head_dim), in place."""
        full = heads.float()
        if self._head_norm is not None:
            full = self._head_norm(full)
        elif self._all_heads_norm is not None:
            full = self._all_heads_norm(full, all_reduce)
        if self._rope is not None:
            rotated = full if self._rotary_dims is None else full[:, :, : self._rotary_dims]
            rotate(rotated, context.ropes[self._rope])
        if full is not heads:
            heads.copy_(full)
