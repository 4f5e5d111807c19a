"""The weights of one layer of a traced model: each is cut, or known to be whole on every shard."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from skynet.architecture.transformers_model import Style, TransformersWeight
from skynet.architecture.weight import Cut, Unit
from skynet.reference.library import stays_float32
from skynet.transformers_backend.file_names import FileNames
from skynet.transformers_backend.styles import EXPERTS, Styles
from skynet.transformers_backend.trace import AttentionCall, Trace
from skynet.transformers_backend.whole import direct_parameters, stored_buffers

CUTS: dict[Style, Cut] = {
    "column": "column",
    "row": "row",
    "gather": "column",
    "split": "row",
    "whole": "replicated",
}


@dataclass(frozen=True)
class AttentionPlace:
    """Where attention is: in each layer of the list at `path`, the module `inside`."""

    path: str
    inside: str
    call: AttentionCall  # of the first layer; the others are alike

    def contains(self, role: str) -> bool:
        """Whether the module at `role` in a layer is part of attention."""
        return role.startswith(f"{self.inside}.")


class LayerWeights:
    """Describes the modules of one layer after the other."""

    def __init__(self, trace: Trace, styles: Styles, attention: AttentionPlace) -> None:
        self._trace, self._styles, self._attention = trace, styles, attention
        self._path, self._files = attention.path, FileNames(trace.model_type)

    def of(self, layer: int) -> list[TransformersWeight]:
        """The weights of a layer.

        Raises:
            UnsupportedModel: a module that is cut in a way that is not supported; names it.
        """
        weights, prefix = [], f"{self._path}.{layer}"
        for role, module in self._trace.model.get_submodule(prefix).named_modules():
            path = f"{prefix}.{role}".removesuffix(".")
            style = self._styles.of(path)
            if style == "experts":
                weights += self._experts(path, role, module)
            elif style is not None and style != "whole":
                weights.append(self._product(path, role, module, style))
            else:
                weights += self._whole(role, module)
        return weights

    def _product(self, path: str, role: str, module: nn.Module, style: Style) -> TransformersWeight:
        """The weight of a module that the plan cuts."""
        if type(module) is not nn.Linear:
            raise self._trace.refusal(path, f"is cut by the plan ({style}), but is no plain Linear")
        self._check_called(path)
        unit: Unit = "columns"
        if self._attention.contains(role) and style != "gather":
            unit = self._heads_unit(path, module, style)
        return TransformersWeight(
            role=role,
            name=self._name(role),
            cut=CUTS[style],
            unit=unit,
            bias=module.bias is not None,
            sizes=tuple(module.weight.shape),
            style=style,
        )

    def _experts(self, path: str, role: str, module: nn.Module) -> list[TransformersWeight]:
        """The matrices of all experts, whose parameters hold them one above the other."""
        parameters, names = direct_parameters(module), EXPERTS
        shapes = [tuple(parameters[name].shape) for name in names if name in parameters]
        if parameters.keys() != set(names) or not self._styles.are_experts(path):
            raise self._trace.refusal(
                path, f"has experts of {sorted(parameters)}, not of {list(names)}"
            )
        (count, rows, inputs), (same, outputs, columns) = shapes
        if (count, rows, inputs) != (same, 2 * columns, outputs):
            raise self._trace.refusal(path, f"has experts of shapes {shapes}")
        self._check_called(path)
        weights = []
        for parameter, sizes in zip(names, ((columns, inputs), (outputs, columns)), strict=True):
            file_names = self._files.of_experts(f"{self._path}.{{layer}}.{role}.{parameter}")
            if len(file_names) * sizes[0] != parameters[parameter].shape[1]:
                raise self._trace.refusal(path, f"has {parameter} made of {list(file_names)}")
            weights += [
                TransformersWeight(
                    role=f"{role}.{parameter}:{number}",
                    name=name.removesuffix(".weight"),
                    cut="row" if parameter == names[1] else "column",
                    unit="columns",
                    sizes=sizes,
                    style="experts",
                    parameter=f"{role}.{parameter}",
                )
                for number, name in enumerate(file_names)
            ]
        return weights

    def _whole(self, role: str, module: nn.Module) -> list[TransformersWeight]:
        """The parameters of a module that is the same on every shard."""
        parameters = dict[str, torch.Tensor](direct_parameters(module))
        weights, buffers = [], stored_buffers(module)
        if "weight" in parameters and parameters.keys() <= {"weight", "bias"}:
            value, bias = parameters["weight"], "bias" in parameters
            weight = replicated(role, self._name(role), tuple(value.shape), bias)
            weights.append(replace(weight, float32=self._stays_float32(f"{role}.weight", value)))
            parameters = {}
        for kind, value in {**parameters, **buffers}.items():
            inside = f"{role}.{kind}"
            name = self._files.of(f"{self._path}.{{layer}}.{inside}")
            weight = replicated(inside, name, tuple(value.shape), bare=True)
            stays = self._stays_float32(inside, value)
            weights.append(replace(weight, buffer=kind in buffers, float32=stays))
        return weights

    def _heads_unit(self, path: str, module: nn.Linear, style: Style) -> Unit:
        call = self._attention.call
        units: dict[int, Unit] = {call.num_heads * call.head_dim: "heads"}
        size = module.in_features
        if style == "column":  # a KV head may be computed by several shards, but not summed twice
            units.setdefault(call.num_kv_heads * call.head_dim, "kv_heads")
            size = module.out_features
        if size not in units:
            raise self._trace.refusal(
                path,
                f"is cut by the plan, but {size} is neither {call.num_heads} heads nor "
                f"{call.num_kv_heads} KV heads of {call.head_dim} numbers",
            )
        return units[size]

    def _check_called(self, path: str) -> None:
        """The output is summed once per step, so the module must be called once."""
        if self._counts[path] != 1:
            raise self._trace.refusal(path, f"is called {self._counts[path]} times in a step")

    @cached_property
    def _counts(self) -> Counter[str]:
        return self._trace.counts

    def _stays_float32(self, inside: str, value: torch.Tensor) -> bool:
        """Whether Transformers keeps it in float32 in a bfloat16 model, as the traced one is."""
        return value.dtype == torch.float32 or stays_float32(self._trace.model, inside)

    def _name(self, role: str) -> str:
        """The name in files of a module that has a weight."""
        return self._files.of(f"{self._path}.{{layer}}.{role}.weight").removesuffix(".weight")


def replicated(
    role: str, name: str, sizes: tuple[int, ...], bias: bool = False, bare: bool = False
) -> TransformersWeight:
    return TransformersWeight(role, name, "replicated", "hidden", bias, sizes=sizes, bare=bare)
