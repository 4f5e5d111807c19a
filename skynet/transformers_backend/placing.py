"""Places the weights of one shard into the modules of Transformers' model, and takes them out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from skynet.architecture.transformers_model import TransformersArchitecture, TransformersWeight
from skynet.transformers_backend.loader import TransformersLoader
from skynet.transformers_backend.products import Column, Gather, Row, Summed
from skynet.transformers_backend.state import Running


class Placement:
    """Replaces modules and parameters of a model, and can restore those of its layers."""

    def __init__(self, model: Any, arch: TransformersArchitecture, running: Running) -> None:
        self._model, self._arch, self._running = model, arch, running
        self._undo: dict[int, list[Callable[[], None]]] = {}

    def place_layer(self, layer: int, load: TransformersLoader) -> int:
        """Place the weights of a layer; returns their bytes."""
        num_bytes = 0
        experts: dict[str, list[TransformersWeight]] = {}  # by parameter
        for weight in self._arch.weights_of(layer):
            if weight.style == "experts":
                experts.setdefault(weight.parameter, []).append(weight)
            elif weight.style == "whole":
                num_bytes += self.place_whole(weight, layer, load)
            else:
                num_bytes += self._place_product(weight, layer, load)
        for parameter, weights in experts.items():
            num_bytes += self._place_experts(parameter, weights, layer, load)
        return num_bytes

    def place_whole(
        self, weight: TransformersWeight, layer: int | None, load: TransformersLoader
    ) -> int:
        """Place the parameters, or the buffer, of a module that every shard has all of."""
        num_bytes = 0
        path = weight.name if layer is None else self._path(layer, weight.role)
        for kind in ("weight", "bias") if weight.bias else ("weight",):
            parent, name = self._parent(path if weight.bare else f"{path}.{kind}")
            values: dict[str, Any] = parent._buffers if weight.buffer else parent._parameters
            value = load.whole(weight, kind, layer)
            self._replace(layer, values, name, value if weight.buffer else parameter_of(value))
            num_bytes += value.nbytes
        return num_bytes

    def undo(self) -> list[int]:
        """Restore all layers; returns the layers that had weights."""
        undone, self._undo = self._undo, {}
        for undos in undone.values():
            for undo in undos:
                undo()
        return list(undone)

    def _place_product(
        self, weight: TransformersWeight, layer: int, load: TransformersLoader
    ) -> int:
        """Replace a module that is cut by SkyNet's product."""
        product = load.product(weight, layer)
        biased_row = weight.bias and weight.cut == "row"
        bias = load.float32.vector(weight.role, "bias", layer) if biased_row else None
        running, units = self._running, load.regions.units(weight)
        module: nn.Module
        if weight.style == "column":
            module = Column(product)
        elif weight.style == "gather":
            module = Gather(product, units, weight.sizes[0], running)
        else:
            module = Row(product, bias, running, units if weight.style == "split" else None)
        parent, name = self._parent(self._path(layer, weight.role))
        self._replace(layer, parent._modules, name, module)
        return product.nbytes + (0 if bias is None else bias.nbytes)

    def _place_experts(
        self,
        parameter: str,
        weights: list[TransformersWeight],
        layer: int,
        load: TransformersLoader,
    ) -> int:
        """Give a module of experts the shard's columns of all experts, and sum its output."""
        value = load.experts(weights, layer)
        module, name = self._parent(self._path(layer, parameter))
        self._replace(layer, module._parameters, name, parameter_of(value))
        if not isinstance(module.forward, Summed):
            self._later(layer, partial(setattr, module, "forward", module.forward))
            module.forward = Summed(module.forward, self._running)
        return value.nbytes

    def _path(self, layer: int, role: str) -> str:
        return f"{self._arch.path}.{layer}.{role}"

    def _parent(self, path: str) -> tuple[Any, str]:
        """The module that has the attribute at `path`, and the attribute's name."""
        above, _, name = path.rpartition(".")
        return self._model.get_submodule(above), name

    def _replace(self, layer: int | None, values: dict[str, Any], name: str, value: Any) -> None:
        self._later(layer, partial(values.__setitem__, name, values[name]))
        values[name] = value

    def _later(self, layer: int | None, undo: Callable[[], None]) -> None:
        if layer is not None:
            self._undo.setdefault(layer, []).append(undo)


def parameter_of(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
