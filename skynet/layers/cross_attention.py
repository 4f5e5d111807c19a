"""Cross-attention of a decoder: the encoder KV of a text is computed once, and kept in a slot."""

from __future__ import annotations

import torch

from skynet.kernels.attention import HeadLayout, emit_attention
from skynet.kernels.steps import MIXED, WIDE, Program
from skynet.layers.attention import Attending, attend, store
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce
from skynet.layers.weights import Loader


class CrossAttention:
    """One shard's heads over the encoder KV of the texts."""

    def __init__(self, load: Loader, kv: KVLayout, layer: int) -> None:
        arch, kv_heads = load.arch, load.part.kv_heads.size
        self._heads = load.part.heads.size
        self._how, self._head_dim = Attending(arch.attention_scale), arch.head_dim
        self._query = load.linear("cross_q", layer=layer)
        self._key_value = load.linear("cross_k", "cross_v", layer=layer)
        self._out = load.linear("cross_o", layer=layer, bias=False)
        self.encoder_kv = KVCache(kv, 2 * kv_heads, arch.head_dim, load.dtype, load.device)
        self.nbytes = self._query.nbytes + self._key_value.nbytes + self._out.nbytes

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        layout = HeadLayout(
            self._heads, self.encoder_kv.kv_heads, self._head_dim, self._how.scale, crossed=True
        )
        kv = self.encoder_kv.values, self.encoder_kv.scales
        return (
            self._query.emit(program, (source, WIDE))
            and emit_attention(program, layout, *kv, (WIDE, MIXED))
            and self._out.emit(program, (MIXED, target))
        )

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        """Store the encoder KV of texts; `x` (tokens, hidden) is the encoder's output."""
        keys_values = self._key_value(x).unflatten(1, (-1, self._head_dim))
        store(self.encoder_kv, keys_values, context)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        queries = self._query(x).unflatten(1, (-1, self._head_dim))
        calls = context.encoder_kvs
        mixed = attend(queries, self.encoder_kv, calls, self._how)
        return self._out(mixed)
