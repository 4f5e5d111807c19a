"""Loads a shard's slice of the weights of a model that runs on the Transformers backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.architecture.transformers_model import TransformersArchitecture, TransformersWeight
from skynet.architecture.weight import Weight
from skynet.layers.linear import Linear
from skynet.layers.regions import ShardRegions
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range
from skynet.planning.transformers_model import units


class TransformersRegions(ShardRegions):
    """Regions of weights whose description has their sizes."""

    arch: TransformersArchitecture

    def units(self, weight: Weight) -> Range:
        return units(self.arch, self.part, weight)

    def matrix_shape(self, weight: Weight) -> tuple[int, int]:
        rows, columns = self.arch.shape(weight)
        width = self.units(weight).size
        return (rows, width) if weight.cut == "row" else (width, columns)


class TransformersLoader(Loader):
    """A `Loader` of the parameters of Transformers' modules."""

    regions_class = TransformersRegions
    arch: TransformersArchitecture

    @property
    def table_dtype(self) -> torch.dtype:
        """Transformers' modules compute with their tables."""
        return self.dtype

    def product(self, weight: Weight, layer: int | None = None) -> Linear:
        """The shard's part of a product, with its bias unless that is added after a sum."""
        return self.linear(weight.role, layer=layer, bias=weight.bias and weight.cut != "row")

    def experts(self, weights: Sequence[Weight], layer: int) -> torch.Tensor:
        """(experts, out, in) of one parameter, the `weights` of each expert one above the other."""
        roles, count = [weight.role for weight in weights], self.arch.num_experts
        stacked = torch.empty(0)
        for expert in range(count):
            part = self.matrix(*roles, layer=layer, piece=expert)
            if expert == 0:
                stacked = part.new_empty((count, *part.shape))
            stacked[expert] = part
            # The next slice reuses the view, so that no second copy of the matrix is kept.
            key, expert_units = self._key("table", list(weights), layer, expert)
            self.weights.add(key, stacked[expert], expert_units)
        return stacked

    def whole(self, weight: TransformersWeight, kind: str, layer: int | None) -> torch.Tensor:
        """A weight or bias that every shard has all of, in the dtype computed in or in float32."""
        name = weight.tensor(layer, kind)
        key = ("whole", name, self.regions.layer_number(layer))
        value = self.weights.get(key, ())
        if not isinstance(value, torch.Tensor):
            raw = self.regions.fetch(name, Range(0, self.arch.shape(weight)[0]))
            dtype = torch.float32 if weight.float32 else self.dtype
            value = torch.empty(raw.shape, dtype=dtype, device=self.device)
            self._copy(weight, raw, value, layer)
        self.weights.add(key, value, ())
        return value
