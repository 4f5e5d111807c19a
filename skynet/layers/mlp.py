"""The MLP of one shard: its columns; the result is a partial."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.kernels.experts import emit_score
from skynet.kernels.steps import MIXED, WIDE, Program
from skynet.layers.activation import combination
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce
from skynet.layers.weights import Loader


class MLP:
    """One or two column-parallel products, activation, and the row-parallel product."""

    def __init__(self, load: Loader, layer: int, prefix: str = "") -> None:
        """prefix: of the roles: "shared_" for the MLP beside experts, which may have a score."""
        arch = load.arch
        self._name, self._gated = arch.activation, arch.gated
        self._combine, self._gate, self._hidden = combination(arch), arch.gate, arch.hidden_size
        roles = ("gate", "up") if arch.gated else ("up",)
        up = load.regions.weight(f"{prefix}up")
        self._columns = load.regions.units(up).size
        self._in = load.linear(*(prefix + role for role in roles), layer=layer)
        self._out = load.linear(f"{prefix}down", layer=layer, bias=False)
        self._score = None
        if load.has(f"{prefix}score", layer):
            self._score = load.float32.matrix(f"{prefix}score", layer)
        parts = (self._in, self._out, self._score)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        out = self._out(self._combine(self._in(x)))
        if self._score is None:
            return out
        return out * F.linear(x.float(), self._score).sigmoid_().to(out.dtype)

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        places = (WIDE, MIXED)
        return (
            self._in.emit(program, (source, WIDE))
            and program.activation(self._name, self._columns, self._gated, places, self._gate)
            and self._out.emit(program, (MIXED, target))
            and (
                self._score is None
                or emit_score(program, self._score, self._hidden, (source, target))
            )
        )
