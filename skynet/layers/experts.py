"""A mixture of experts (Shazeer et al., 2017, arXiv:1701.06538): a router, and an MLP cut by its
columns for each expert.

Every shard has its columns of all experts and the whole router, so that all shards choose the same
experts without asking: from the same hidden states, bit by bit. Machines whose kernels round
differently could disagree where two experts are liked equally up to that rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture
from skynet.layers.activation import ACTIVATIONS, gated
from skynet.layers.linear import Linear
from skynet.layers.weights import Loader


class Experts:
    """Computes for each token the experts that its router likes best, weighted."""

    def __init__(self, arch: Architecture, layer: int, load: Loader) -> None:
        self._activation = ACTIVATIONS[arch.activation]
        self._count, self._sum_to_one = arch.experts_per_token, arch.expert_weights_sum_to_one
        self._router = load.float_matrix("router", layer)
        self._in: list[Linear] = []
        self._out: list[Linear] = []
        for expert in range(arch.num_experts):
            self._in.append(load.linear("gate", "up", layer=layer, piece=expert))
            self._out.append(load.linear("down", layer=layer, piece=expert, bias=False))
        products = (*self._in, *self._out)
        self.nbytes = self._router.nbytes + sum(product.nbytes for product in products)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normed `x` (tokens, hidden) to this shard's partial of the same shape and dtype."""
        weights, chosen = self._route(x)
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        if len(x) == 1:
            for weight, expert in zip(weights[0], chosen[0].tolist(), strict=True):
                total += self._expert(expert, x).float() * weight
            return total.to(x.dtype)
        for expert in chosen.unique().tolist():
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            made = self._expert(expert, x[tokens]).float()
            total.index_add_(0, tokens, made * weights[tokens, places, None])
        return total.to(x.dtype)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, experts per token): weights, float32, and numbers of the experts."""
        shares = F.linear(x.float(), self._router).softmax(-1)
        weights, chosen = shares.topk(self._count, dim=-1)
        if self._sum_to_one:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        return self._out[expert](gated(self._activation, self._in[expert](x)))
