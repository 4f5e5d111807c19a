"""Chooses the experts of each token."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.kernels.experts import RouterWeights, emit_router
from skynet.kernels.steps import Program
from skynet.layers.norm import NoNorm, Norm, load_norm
from skynet.layers.weights import Loader

FORBIDDEN = float("-inf")


class TopRouter:
    """The experts with the best scores, as `Router` describes them.

    Every shard has the whole router, so all shards choose the same experts from the same hidden
    states without communication. Machines whose kernels round differently could disagree where two
    experts have scores that are equal up to rounding.
    """

    def __init__(self, load: Loader, layer: int) -> None:
        arch = load.arch
        self._router, self._count = arch.router, arch.experts_per_token
        self._weight = load.float32.matrix("router", layer)
        self._bias = self._preference = None
        if load.has_bias("router"):
            self._bias = load.float32.vector("router", "bias", layer)
        if self._router.biased:
            self._preference = load.float32.vector("router_bias", layer=layer)
        # Of Gemma 4: a norm before the router, and a factor for each expert.
        self._norm: Norm = load_norm(load, "router_norm", layer, torch.float32)
        self._norm_scale = 1.0 if isinstance(self._norm, NoNorm) else arch.hidden_size**-0.5
        self._factors = None
        if load.has("router_scale", layer):
            self._factors = load.float32.vector("router_scale", layer=layer)
        parts = (self._weight, self._bias, self._preference, self._norm, self._factors)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` (tokens, hidden) to (tokens, experts per token) each: weights in float32, and the
        experts' numbers."""
        router, x = self._router, self._norm(x.float())
        x = x if self._norm_scale == 1 else x * self._norm_scale
        logits = F.linear(x, self._weight, self._bias)
        if router.score == "chosen":
            best, chosen = logits.topk(self._count, dim=-1)
            return best.softmax(-1).mul_(router.scale), chosen
        scores = logits.softmax(-1) if router.score == "softmax" else logits.sigmoid()
        preferred = scores if self._preference is None else scores + self._preference
        if router.groups:
            preferred = self._in_best_groups(preferred)
        chosen = preferred.topk(self._count, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if router.sum_to_one:
            weights = weights / (weights.sum(-1, keepdim=True) + router.epsilon)
        weights = weights * router.scale
        return (weights if self._factors is None else weights * self._factors[chosen]), chosen

    def emit(self, program: Program, source: int) -> bool:
        """Add the choice to a program; False: not supported."""
        if self._factors is not None or not isinstance(self._norm, NoNorm):
            return False
        weights = RouterWeights(self._weight, self._bias, self._preference)
        return emit_router(program, weights, self._router, self._count, source)

    def _in_best_groups(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores, and minus infinity outside of each token's best groups."""
        router, grouped = self._router, scores.unflatten(-1, (self._router.groups, -1))
        best = grouped.topk(1 if router.group_score == "max" else 2, dim=-1).values.sum(-1)
        groups = best.topk(router.groups_per_token, dim=-1).indices
        is_out = torch.ones_like(best, dtype=torch.bool).scatter_(-1, groups, False)
        return grouped.masked_fill(is_out[..., None], FORBIDDEN).flatten(-2)
