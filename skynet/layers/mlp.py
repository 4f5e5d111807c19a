"""The MLP of one shard: its columns; the result is a partial."""

from __future__ import annotations

import torch

from skynet.kernels.steps import MIXED, WIDE, Program
from skynet.layers.activation import ACTIVATIONS, gated
from skynet.layers.weights import Loader


class MLP:
    """One or two column-parallel products, activation, and the row-parallel product."""

    def __init__(self, load: Loader, layer: int) -> None:
        arch = load.arch
        self._name, self._gated = arch.activation, arch.gated
        self._activation, self._columns = ACTIVATIONS[arch.activation], load.part.columns.size
        roles = ("gate", "up") if arch.gated else ("up",)
        self._in = load.linear(*roles, layer=layer)
        self._out = load.linear("down", layer=layer, bias=False)
        self.nbytes = self._in.nbytes + self._out.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normed `x` (tokens, hidden) to this shard's partial of the same shape and dtype."""
        middle = self._in(x)
        if self._gated:
            return self._out(gated(self._activation, middle))
        return self._out(self._activation(middle))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Attention.emit`."""
        return (
            self._in.emit(program, (source, WIDE))
            and program.activation(self._name, self._columns, self._gated, (WIDE, MIXED))
            and self._out.emit(program, (MIXED, target))
        )
