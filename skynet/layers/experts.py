"""A mixture of experts (Shazeer et al., 2017, arXiv:1701.06538): a router, and an MLP cut by its
columns for each expert.

Every shard has the whole router and its columns of all experts, so all shards choose the same
experts from the same hidden states without communication. Machines whose kernels round differently
could disagree where two experts have router weights that are equal up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.kernels.steps import Program
from skynet.layers.activation import ACTIVATIONS, gated
from skynet.layers.linear import Linear
from skynet.layers.weights import Loader


class Experts:
    """The weighted sum of the experts that the router gives each token the largest weights for."""

    def __init__(self, load: Loader, layer: int) -> None:
        arch = load.arch
        self._activation = ACTIVATIONS[arch.activation]
        self._count, self._sum_to_one = arch.experts_per_token, arch.expert_weights_sum_to_one
        self._router = load.float32.matrix("router", layer)
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
            output = self._expert(expert, x[tokens]).float()
            total.index_add_(0, tokens, output * weights[tokens, places, None])
        return total.to(x.dtype)

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Attention.emit`: the kernels choose no experts."""
        return False

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, experts per token) each: weights in float32, and the experts' numbers."""
        shares = F.linear(x.float(), self._router).softmax(-1)
        weights, chosen = shares.topk(self._count, dim=-1)
        if self._sum_to_one:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        return self._out[expert](gated(self._activation, self._in[expert](x)))
