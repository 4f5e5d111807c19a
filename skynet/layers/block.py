"""One decoder layer of one shard: attention and MLP as partials, nothing summed, nothing added."""

from __future__ import annotations

import torch

from skynet.layers.activation import ACTIVATIONS, gated
from skynet.layers.attention import attend, store
from skynet.layers.cache import allocate
from skynet.layers.context import StepContext
from skynet.layers.norm import LayerNorm, Norm, RMSNorm
from skynet.layers.rope import rotate
from skynet.layers.weights import Loader
from skynet.models.architecture import Architecture
from skynet.planning.plan import Plan, ShardPlan


def load_norm(
    arch: Architecture, load: Loader, role: str, layer: int | None, dtype: torch.dtype
) -> Norm:
    """The norm of this role, whole: norms are replicated."""
    weight = load.vector(role, layer=layer)
    if arch.norm == "layer":
        return LayerNorm(weight, load.vector(role, "bias", layer), arch.norm_eps, dtype)
    return RMSNorm(weight, arch.norm_eps, dtype)


class Attention:
    """Norm, fused Q K V product, rope, KV slots, and the O product over this shard's heads."""

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
        self.window = arch.windows[layer]
        self._scale, self._head_dim = arch.attention_scale, arch.head_dim
        self._heads, self._kv_heads = part.heads.size, part.kv_heads.size
        self._norm = load_norm(arch, load, "attn_norm", layer, dtype)
        self._qkv = load.linear("q", "k", "v", layer=layer)
        self._head_norm = self._load_head_norm(arch, layer, load) if arch.qk_norm else None
        self._out = load.linear("o", layer=layer, bias=False)
        self.bias = load.row_bias("o", layer)
        self._cache = allocate(
            plan.num_slots, 2 * self._kv_heads, plan.slot_tokens, arch.head_dim, dtype, device
        )
        parts = (self._norm, self._qkv, self._head_norm, self._out, self.bias)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def _load_head_norm(self, arch: Architecture, layer: int, load: Loader) -> RMSNorm:
        # One weight a head, so that queries and keys are normed by the same calls.
        weights = [load.vector("q_norm", layer=layer)] * self._heads
        weights += [load.vector("k_norm", layer=layer)] * self._kv_heads
        return RMSNorm(torch.stack(weights), arch.norm_eps, torch.float32)

    def __call__(self, x: torch.Tensor, context: StepContext) -> torch.Tensor:
        """`x` (tokens, hidden) float32 to this shard's partial of the same shape."""
        qkv = self._qkv(self._norm(x)).unflatten(1, (-1, self._head_dim))
        if context.rope is not None:
            self._turn(qkv[:, : self._heads + self._kv_heads], context.rope)
        store(self._cache, qkv[:, self._heads :], context)
        calls = context.attends[self.window]
        return self._out(attend(qkv[:, : self._heads], self._cache, calls, self._scale))

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """The keys and values of the first `tokens` tokens of slot `source`, for `target` too."""
        self._cache[target, :, :tokens].copy_(self._cache[source, :, :tokens])

    def _turn(self, heads: torch.Tensor, factors: torch.Tensor) -> None:
        """Norm, if there is one, and rope of Q and K (tokens, heads, head_dim), in place."""
        full = heads.float()
        if self._head_norm is not None:
            full = self._head_norm(full)
        rotate(full, factors)
        if full is not heads:
            heads.copy_(full)


class MLP:
    """Norm, one or two column-parallel products, activation, and the row-parallel product."""

    def __init__(self, arch: Architecture, layer: int, load: Loader, dtype: torch.dtype) -> None:
        self._activation, self._gated = ACTIVATIONS[arch.activation], arch.gated
        self._norm = load_norm(arch, load, "mlp_norm", layer, dtype)
        roles = ("gate", "up") if arch.gated else ("up",)
        self._in = load.linear(*roles, layer=layer)
        self._out = load.linear("down", layer=layer, bias=False)
        self.bias = load.row_bias("down", layer)
        parts = (self._norm, self._in, self._out, self.bias)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (tokens, hidden) float32 to this shard's partial of the same shape."""
        middle = self._in(self._norm(x))
        if self._gated:
            return self._out(gated(self._activation, middle))
        return self._out(self._activation(middle))
