"""Self-attention of one shard: its heads over their KV slots; the result is a partial."""

from __future__ import annotations

import torch

from skynet.architecture.mixers import SELF_ATTENTION, SelfAttention
from skynet.architecture.positions import Temperature
from skynet.architecture.window import Window
from skynet.kernels.attention import HeadLayout, emit_attention
from skynet.kernels.divided_norm import emit_divided_norm
from skynet.kernels.steps import MIXED, WIDE, Program
from skynet.layers.attention import Attending, attend, kernel_of, kv_of_queries, store
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.context import StepContext
from skynet.layers.disentangled import load_distances
from skynet.layers.encoder_attention import attend_text_batches
from skynet.layers.heads import half_by_half
from skynet.layers.norm import AllHeadsNorm, AllReduce, Norm, load_head_norm, unweighted_norm
from skynet.layers.rope import rotate
from skynet.layers.slot_state import SlotState
from skynet.layers.weights import Loader


class Attention:
    """Fused Q K V product, norm and rope of heads, KV slots (`cache`), and the O product."""

    def __init__(
        self, load: Loader, kv: KVLayout, layer: int, mixer: SelfAttention = SELF_ATTENTION
    ) -> None:
        arch, part = load.arch, load.part
        self._window = arch.windows[layer]
        self.windows: tuple[Window, ...] = (self._window,)
        self._head_dim = arch.head_dim
        self._clip = arch.qkv_clip
        self._heads, self._kv_heads = part.heads.size, part.kv_heads.size
        gate = ("q_gate",) if load.has("q_gate") else ()
        self._gated = bool(gate)
        roles = ("q", "k") if mixer.values_are_keys else ("q", "k", "v")
        self._qkv = load.linear(*roles, *gate, layer=layer)
        self._values_are_keys = mixer.values_are_keys
        self._value_norm: Norm | None = None
        if mixer.normed_values:
            self._value_norm = unweighted_norm(load, self._kv_heads)
        self._head_norm: Norm | None = None
        self._all_heads_norm: AllHeadsNorm | None = None
        if arch.qk_norm == "head":
            self._head_norm = load_head_norm(load, layer)
        elif arch.qk_norm == "all":
            self._all_heads_norm = AllHeadsNorm(load, layer)
        rope = arch.ropes[layer]
        self._rope = None if rope is None else arch.rope_kinds.index(rope)
        self._rotary_dims = None if rope is None or rope.dims == arch.head_dim else rope.dims
        # Keys are loaded with rotated pairs side by side, values are not.
        self._paired = 0 if rope is None or rope.adjacent else rope.dims
        self._changes_heads = rope is not None or arch.qk_norm is not None
        self._temperature = arch.temperature
        self._biased = bool(arch.alibi or arch.relative)
        self._cap = arch.attention_cap
        sinks = load.float32.cut("sinks", layer).flatten() if load.has("sinks", layer) else None
        kv_of_query = kv_of_queries(arch, part, load.device)
        self._how = Attending(arch.attention_scale, kernel_of(self._cap), sinks, kv_of_query)
        self._out = load.linear("o", layer=layer, bias=False)
        self.cache: KVCache | None = None  # an encoder needs none
        if not arch.bidirectional:
            kv_heads = 2 * self._kv_heads
            self.cache = KVCache(kv, kv_heads, arch.head_dim, load.dtype, load.device)
        self.states: tuple[SlotState, ...] = () if self.cache is None else (self.cache,)
        self._distances = load_distances(load, self._qkv, layer)
        norms = (self._head_norm, self._all_heads_norm)
        parts = (self._qkv, *norms, sinks, self._out, self._distances)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """Normed `x` (tokens, hidden) to this shard's partial of the same shape and dtype."""
        qkv = self._qkv(x).unflatten(1, (-1, self._head_dim))
        if self._clip is not None:
            qkv.clamp_(-self._clip, self._clip)
        if self._values_are_keys:
            keys = qkv[:, self._heads :]
            qkv = torch.cat([qkv, half_by_half(keys, self._paired)], dim=1)
        kv_end = self._heads + 2 * self._kv_heads
        if self._value_norm is not None:
            values = qkv[:, self._heads + self._kv_heads : kv_end]
            values.copy_(self._value_norm(values.float()))
        if self._changes_heads:
            self._change(qkv[:, : self._heads + self._kv_heads], context, all_reduce)
        if self.cache is None:
            q, k, v = qkv.split([self._heads, self._kv_heads, self._kv_heads], dim=1)
            batches = context.text_batches[self._window]
            how = (self._how.scale, self._distances)
            return self._out(attend_text_batches(q, k, v, batches, *how))
        store(self.cache, qkv[:, self._heads : kv_end], context)
        calls = context.attends[self._window]
        queries = qkv[:, : self._heads]
        if self._temperature is not None:
            queries = queries * _factors(self._temperature, context.positions).to(queries.dtype)
        mixed = attend(queries, self.cache, calls, self._how)
        if self._gated:
            mixed = mixed.mul_(qkv[:, kv_end:].flatten(1).sigmoid())
        return self._out(mixed)

    def emit(self, program: Program, source: int, target: int) -> bool:
        """Add the operations from `source`, normed, to the partial; False: not supported."""
        only_here = (
            self._values_are_keys
            or self._value_norm is not None
            or self._how.kv_of_query is not None
            or (self._head_norm is not None and self._head_norm.weights is None)
            or (self._clip is not None and self._all_heads_norm is not None)
        )
        if self.cache is None or only_here:
            return False
        kv = self.cache.values, self.cache.scales
        return (
            self._qkv.emit(program, (source, WIDE))
            and self._emit_all_heads_norm(program)
            and emit_attention(program, self._layout(kv[0].shape[2]), *kv, (WIDE, MIXED))
            and self._out.emit(program, (MIXED, target))
        )

    def _layout(self, slot_tokens: int) -> HeadLayout:
        factors = None
        if self._temperature is not None:
            factors = _factors(self._temperature, torch.arange(slot_tokens)).flatten()
        return HeadLayout(
            self._heads,
            self._kv_heads,
            self._head_dim,
            self._how.scale,
            window=self._window,
            rope=self._rope,
            rotary_dims=self._rotary_dims or self._head_dim,
            cap=self._cap,
            norm=None if self._head_norm is None else self._head_norm.weights,
            biased=self._biased,
            gated=self._gated,
            clip=self._clip,
            sinks=self._how.sinks,
            query_factors=factors,
        )

    def _emit_all_heads_norm(self, program: Program) -> bool:
        norm, gates = self._all_heads_norm, self._heads if self._gated else 0
        stride = (self._heads + 2 * self._kv_heads + gates) * self._head_dim
        return norm is None or emit_divided_norm(program, norm.for_kernels(), WIDE, stride)

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


def _factors(temperature: Temperature, positions: torch.Tensor) -> torch.Tensor:
    """(tokens, 1, 1) float32 for queries at `positions` (tokens,)."""
    steps = torch.floor((positions.float() + 1) / temperature.interval)
    return (torch.log1p(steps) * temperature.scale + 1)[:, None, None]
