"""Fetches a shard's slice of the weights of a family without a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.architecture.architecture import Weight
from skynet.architecture.transformers_model import TransformersArchitecture, TransformersWeight
from skynet.layers.linear import Linear
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range
from skynet.planning.transformers_model import units


class TransformersLoader(Loader):
    """A `Loader` of weights whose sizes are written down, not told by what they are for."""

    _arch: TransformersArchitecture

    def product(self, weight: Weight, layer: int | None = None) -> Linear:
        """The shard's part of a product, with its bias unless that is added after a sum."""
        return self.linear(weight.role, layer=layer, bias=weight.bias and weight.cut != "row")

    def experts(self, weights: Sequence[Weight], layer: int) -> torch.Tensor:
        """(experts, out, in) of one parameter, each expert's `weights` one above the other."""
        roles, count = [weight.role for weight in weights], self._arch.num_experts
        stacked = torch.empty(0)
        for expert in range(count):
            part = self.matrix(*roles, layer=layer, piece=expert)
            if expert == 0:
                stacked = part.new_empty((count, *part.shape))
            stacked[expert] = part
            # What is kept is what is used, not a second one.
            key, units = self._key("table", list(weights), layer, expert)
            self.pieces.add(key, stacked[expert], units)
        return stacked

    def units(self, weight: Weight) -> Range:
        """The shard's part of the dimension that the weight is cut in."""
        return self._units(weight)

    def whole(self, weight: TransformersWeight, kind: str, layer: int | None) -> torch.Tensor:
        """A weight or bias that every shard has all of, in the plan's dtype or in float32."""
        key = ("whole", weight.tensor(layer, kind), self._number(layer))
        made = self._found(key, ())
        if not isinstance(made, torch.Tensor):
            size = self._arch.shape(weight)[0]
            raw = self._fetch(weight.tensor(layer, kind), Range(0, size))
            dtype = torch.float32 if weight.float32 else self._dtype
            made = torch.empty(raw.shape, dtype=dtype, device=self._device)
            self._copy(weight, raw, made, layer)
        self.pieces.add(key, made, ())
        return made

    def _units(self, weight: Weight) -> Range:
        return units(self._arch, self._part, weight)

    def _matrix_shape(self, weight: Weight) -> tuple[int, int]:
        rows, columns = self._arch.shape(weight)
        width = self._units(weight).size
        return (rows, width) if weight.cut == "row" else (width, columns)
