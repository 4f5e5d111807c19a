"""A mixture of experts (Shazeer et al., 2017, arXiv:1701.06538): a router, and an MLP cut by its
columns for each expert."""

from __future__ import annotations

import torch

from skynet.kernels.steps import Program
from skynet.layers.activation import ACTIVATIONS, gated
from skynet.layers.context import StepContext
from skynet.layers.linear import Linear
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.router import TopRouter
from skynet.layers.weights import Loader


class Experts:
    """The weighted sum of the experts that the router gives each token the largest weights for."""

    def __init__(self, load: Loader, layer: int) -> None:
        arch = load.arch
        self._activation = ACTIVATIONS[arch.activation]
        self._router = TopRouter(load, layer)
        # The router takes what is not normed, if the experts have a norm of their own.
        self._norm = load_norm(load, "experts_norm", layer) if load.has("experts_norm") else None
        self._in: list[Linear] = []
        self._out: list[Linear] = []
        for expert in range(arch.num_experts):
            self._in.append(load.linear("gate", "up", layer=layer, piece=expert))
            self._out.append(load.linear("down", layer=layer, piece=expert, bias=False))
        self._out_bias = load.float32.piece_biases("down", layer)
        biases = () if self._out_bias is None else (self._out_bias,)
        norms = () if self._norm is None else (self._norm,)
        parts = (self._router, *norms, *self._in, *self._out, *biases)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        weights, chosen = self._router(x)
        x = x if self._norm is None else self._norm(x.float())
        if self._out_bias is None:
            total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        else:
            total = (self._out_bias[chosen] * weights[..., None]).sum(1)
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
        """See `Module.emit`: the kernels choose no experts."""
        return False

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        return self._out[expert](gated(self._activation, self._in[expert](x)))
