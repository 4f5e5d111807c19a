"""A mixture of experts (Shazeer et al., 2017, arXiv:1701.06538): a router, and an MLP cut by its
columns for each expert."""

from __future__ import annotations

import torch

from skynet.kernels.steps import Program
from skynet.layers.activation import combination
from skynet.layers.context import StepContext
from skynet.layers.linear import Linear
from skynet.layers.norm import AllReduce
from skynet.layers.router import TopRouter
from skynet.layers.weights import Loader


class Experts:
    """The weighted sum of the experts that the router gives each token the largest weights for."""

    def __init__(self, load: Loader, layer: int) -> None:
        arch = load.arch
        self._combine = combination(arch)
        self._router = TopRouter(load, layer)
        self._weighs_inputs = arch.router.of_inputs
        self._in: list[Linear] = []
        self._out: list[Linear] = []
        for expert in range(arch.num_experts):
            self._in.append(load.linear("gate", "up", layer=layer, piece=expert))
            self._out.append(load.linear("down", layer=layer, piece=expert, bias=False))
        self._out_bias = load.float32.piece_biases("down", layer)
        biases = () if self._out_bias is None else (self._out_bias,)
        parts = (self._router, *self._in, *self._out, *biases)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        weights, chosen = self._router(x)
        if self._out_bias is None:
            total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        else:
            total = (self._out_bias[chosen] * weights[..., None]).sum(1)
        if len(x) == 1:
            for weight, expert in zip(weights[0], chosen[0].tolist(), strict=True):
                total += self._expert(expert, x, weight)
            return total.to(x.dtype)
        for expert in chosen.unique().tolist():
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            output = self._expert(expert, x[tokens], weights[tokens, places, None])
            total.index_add_(0, tokens, output)
        return total.to(x.dtype)

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`: the kernels choose no experts."""
        return False

    def _expert(self, expert: int, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One expert's part of the sum, float32; `weights` (float32) broadcasts to `x`."""
        if self._weighs_inputs:
            return self._mlp(expert, (x * weights).to(x.dtype)).float()
        return self._mlp(expert, x).float() * weights

    def _mlp(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        return self._out[expert](self._combine(self._in[expert](x)))
