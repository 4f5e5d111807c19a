"""Attention of a decoder to what an encoder has read: its keys and values are made once a text."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture
from skynet.layers.attention import attend, store
from skynet.layers.cache import allocate
from skynet.layers.context import StepContext
from skynet.layers.weights import Loader
from skynet.planning.plan import Plan, ShardPlan


class CrossAttention:
    """One shard's heads over the texts that are remembered, each at a place of its own."""

    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        part: ShardPlan,
        layer: int,
        load: Loader,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._scale, self._head_dim = arch.attention_scale, arch.head_dim
        self._query = load.linear("cross_q", layer=layer)
        self._read = load.linear("cross_k", "cross_v", layer=layer)
        self._out = load.linear("cross_o", layer=layer, bias=False)
        kv_heads = part.kv_heads.size
        self._encoder_kv = allocate(
            plan.num_slots, 2 * kv_heads, plan.slot_tokens, arch.head_dim, dtype, device
        )
        self.nbytes = self._query.nbytes + self._read.nbytes + self._out.nbytes

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        """Keep the keys and values of texts, `x` (tokens, hidden) as the encoder leaves them."""
        store(self._encoder_kv, self._read(x).unflatten(1, (-1, self._head_dim)), context)

    def __call__(self, x: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Normed `x` (tokens, hidden) to this shard's partial of the same shape and dtype."""
        queries = self._query(x).unflatten(1, (-1, self._head_dim))
        calls = context.encoder_kvs
        mixed = attend(
            queries, self._encoder_kv, calls, self._scale, F.scaled_dot_product_attention
        )
        return self._out(mixed)
