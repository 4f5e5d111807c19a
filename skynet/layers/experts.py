"""A mixture of experts (Shazeer et al., 2017, arXiv:1701.06538): a router, and an MLP cut by its
columns for each expert; or whole experts, of which each shard has some."""

from __future__ import annotations

from operator import itemgetter

import torch

from skynet.kernels.experts import emit_experts
from skynet.kernels.steps import (
    INPUT,
    LATENT,
    LATENT_OUTPUT,
    MIXED,
    OUTPUT,
    WIDE,
    Places,
    Program,
)
from skynet.layers.activation import combination
from skynet.layers.context import StepContext
from skynet.layers.linear import Linear
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.router import TopRouter
from skynet.layers.weights import Loader
from skynet.planning.units import pieces_of


class Experts:
    """The weighted sum of the experts that the router gives each token the largest weights for."""

    def __init__(self, load: Loader, layer: int) -> None:
        arch = load.arch
        self._combine, self._gate = combination(arch), arch.gate
        columns = load.regions.units(load.regions.weight("up")).size
        self._activation = arch.activation, columns, arch.gated
        roles = ("gate", "up") if arch.gated else ("up",)
        self._router = TopRouter(load, layer)
        self._weighs_inputs = arch.router.of_inputs
        # Experts with a norm before them: the router takes the hidden states before that norm.
        self._norm = load_norm(load, "experts_norm", layer) if load.has("experts_norm") else None
        self._in: dict[int, Linear] = {}  # by expert, of those that the shard has anything of
        self._out: dict[int, Linear] = {}
        down = load.regions.weight("down")
        pieces = pieces_of(arch, load.part, down)
        for expert in range(pieces.start, pieces.stop):
            self._in[expert] = load.linear(*roles, layer=layer, piece=expert)
            self._out[expert] = load.linear("down", layer=layer, piece=expert, bias=False)
        self._count, self._size = arch.num_experts, load.regions.matrix_shape(down)[0]
        self._latent: list[Linear] = []  # to the space that the experts compute in, and back
        if load.has("latent_in", layer):
            self._latent = [load.linear(f"latent_{end}", layer=layer) for end in ("in", "out")]
        self._out_bias = load.float32.piece_biases("down", layer)
        biases = () if self._out_bias is None else (self._out_bias,)
        norms = () if self._norm is None else (self._norm,)
        products = (*self._in.values(), *self._out.values(), *self._latent)
        parts = (self._router, *norms, *products, *biases)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        weights, chosen = self._router(x)
        x = x if self._norm is None else self._norm(x.float())
        if not self._latent:
            return self._mixture(x, weights, chosen)
        into, out = self._latent
        return out(self._mixture(into(x), weights, chosen))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        if self._norm is not None or not self._router.emit(program, source):
            return False
        if not self._latent:
            return self._emit_mixture(program, (source, target))
        into, out = self._latent
        return (
            into.emit(program, (source, LATENT))
            and self._emit_mixture(program, (LATENT, LATENT_OUTPUT))
            and out.emit(program, (LATENT_OUTPUT, target))
        )

    def _emit_mixture(self, program: Program, places: Places) -> bool:
        """Add the weighted sum of the chosen experts; there is a program for each expert."""
        experts: list[Program | None] = []
        for expert in range(self._count):
            part = program.part() if expert in self._in else None
            if part is not None and not self._emit_expert(part, expert):
                return False
            experts.append(part)
        return emit_experts(
            program, experts, self._out_bias, (self._size, self._weighs_inputs), places
        )

    def _emit_expert(self, program: Program, expert: int) -> bool:
        return (
            self._in[expert].emit(program, (INPUT, WIDE))
            and program.activation(*self._activation, (WIDE, MIXED), self._gate)
            and self._out[expert].emit(program, (MIXED, OUTPUT))
        )

    def _mixture(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of the chosen experts of each token."""
        if self._out_bias is None:
            total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        else:
            total = (self._out_bias[chosen] * weights[..., None]).sum(1)
        if len(x) == 1:
            pairs = zip(chosen[0].tolist(), weights[0], strict=True)
            for expert, weight in sorted(pairs, key=itemgetter(0)):  # as with other rows beside it
                if expert in self._in:
                    total += self._expert(expert, x, weight)
            return total.to(x.dtype)
        for expert in filter(self._in.__contains__, chosen.unique().tolist()):
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            output = self._expert(expert, x[tokens], weights[tokens, places, None])
            total.index_add_(0, tokens, output)
        return total.to(x.dtype)

    def _expert(self, expert: int, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One expert's part of the sum, float32; `weights` (float32) broadcasts to `x`."""
        if self._weighs_inputs:
            return self._mlp(expert, (x * weights).to(x.dtype)).float()
        return self._mlp(expert, x).float() * weights

    def _mlp(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        return self._out[expert](self._combine(self._in[expert](x)))
