"""One layer of Transformers' model, and each shard's partial of its products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.errors import UnsupportedModel
from skynet.reference.weights import parameter

OTHERS = (
    "q_norm",
    "k_norm",
    "shared_score",
    "latent_out",
)  # modules whose inputs are recorded, too


class Cut(NamedTuple):
    """A shard's inputs of a product, and of which pieces (experts)."""

    inputs: slice
    pieces: slice = slice(None)


Cuts = dict[str, list[Cut]]  # by the role of a product, for each shard


@dataclass(frozen=True)
class DenseLayer:
    """A layer's uncut products, divided into the shards' partials by their inputs.

    partials: role of a row-parallel product -> each shard's (tokens, hidden); a role is missing
        where Transformers computes its product in another way.
    norm_inputs: queries and keys (tokens, all heads), if one norm spans all heads.
    """

    partials: dict[str, list[torch.Tensor]]
    norm_inputs: tuple[torch.Tensor, torch.Tensor] | None = None


class ReferenceLayer:
    """Records the inputs of a layer's products while it runs."""

    def __init__(self, model: Any, arch: Architecture, number: int) -> None:
        """arch: the stack's; number: the layer's in that stack."""
        self._arch, self._number = arch.at(number), number
        self._roles = [role for side in self._arch.sides for role in side]
        self.path = f"{path_of_layers(arch)}.{number}"
        self.module: torch.nn.Module = model.get_submodule(self.path)
        modules = {role: self._module(model, role) for role in (*self._roles, *OTHERS)}
        self._modules = {role: module for role, module in modules.items() if module is not None}
        self._inputs: dict[str, tuple[Any, dict[str, Any]]] = {}

    def record(self) -> None:
        """Record inputs from now on, until `forget`."""
        for role, module in self._modules.items():

            def record(
                _: torch.nn.Module, args: Any, kwargs: dict[str, Any], role: str = role
            ) -> None:
                # The first call only: `_expert_products` calls experts again.
                self._inputs.setdefault(role, (args, kwargs))

            module.register_forward_pre_hook(record, with_kwargs=True)

    def forget(self) -> None:
        self._inputs = {}

    def dense(self, cuts: Cuts) -> DenseLayer:
        """The partials of shards with these cuts, from the recorded inputs."""
        partials = {role: self._partials(role, cuts[role]) for role in self._roles}
        if self._arch.qk_norm != "all":
            return DenseLayer(partials)
        queries, keys = (self._inputs[role][0][0][0].float() for role in ("q_norm", "k_norm"))
        return DenseLayer(partials, (queries, keys))

    def _module(self, model: Any, role: str) -> torch.nn.Module | None:
        """The module whose inputs a role's product has; None if the layer lacks the role."""
        weight = self._arch.weight(role)
        if weight is None:
            return None
        if not weight.in_pieces:
            module: torch.nn.Module = model.get_submodule(weight.name.format(layer=self._number))
            return module
        return _experts(self.module) if role == "down" else None

    def _partials(self, role: str, cuts: list[Cut]) -> list[torch.Tensor]:
        module = self._modules.get(role)
        if module is None:
            raise UnsupportedModel(f"{self._arch.model_type} has no product {role!r} to check")
        args, kwargs = self._inputs[role]
        if role == "down" and self._arch.num_experts:
            packed = weight_of(self._arch, role).packed
            axis = 1 if packed is not None and packed.transposed else 2
            return self._out_of_latent(_expert_products(module, axis, (args, kwargs), cuts))
        x = args[0].reshape(-1, args[0].shape[-1]).float()
        matrix, weight = module.get_parameter("weight").float(), weight_of(self._arch, role)
        matrix = (matrix if weight.transposed else matrix.t()) * weight.scale  # (in, out)
        if role == "shared_down" and self._arch.weight("shared_score") is not None:
            x = x * self._score()
        return [x[:, cut.inputs] @ matrix[cut.inputs] for cut in cuts]

    def _out_of_latent(self, partials: list[torch.Tensor]) -> list[torch.Tensor]:
        """The partials in the hidden size, of experts that compute in a smaller space."""
        module = self._modules.get("latent_out")
        if module is None:
            return partials
        return [F.linear(each.float(), module.get_parameter("weight").float()) for each in partials]

    def _score(self) -> torch.Tensor:
        """(tokens, 1): what the shared MLP's output is multiplied by."""
        x = self._inputs["shared_score"][0][0].float()
        weight = self._modules["shared_score"].get_parameter("weight")
        return F.linear(x.reshape(-1, x.shape[-1]), weight.float()).sigmoid()


def weight_of(arch: Architecture, role: str) -> Weight:
    """The weight of this role, which every supported model has."""
    weight = arch.weight(role)
    if weight is None:
        raise UnsupportedModel(f"{arch.model_type} has no weight {role!r}")
    return weight


def path_of_layers(arch: Architecture) -> str:
    """Path of the module list of a stack's layers in Transformers' model."""
    if isinstance(arch, TransformersArchitecture):
        return arch.path
    named = (weight.name for weight in arch.at(0).weights if weight.per_layer)
    return next(named).partition(".{layer}")[0]


def _experts(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module that is called with tokens and their experts."""
    for inner in module.modules():
        if _down(inner) is not None:
            return inner
    return None


def _down(experts: torch.nn.Module) -> tuple[torch.nn.Module, str] | None:
    """The owner and the name of the parameter of all experts' last products.

    It is (experts, hidden, columns), or (experts x columns, hidden) in a module inside.
    """
    down = experts._parameters.get("down_proj")
    if down is not None and down.ndim == 3:
        return experts, "down_proj"
    inner = experts._modules.get("mlp")
    down = None if inner is None else inner._parameters.get("w2")
    return None if inner is None or down is None or down.ndim != 2 else (inner, "w2")


def _by_expert(experts: Any, down: torch.Tensor) -> torch.Tensor:
    """The parameter with an axis of experts, the first."""
    return down if down.ndim == 3 else down.unflatten(0, (experts.num_experts, -1))


def _expert_products(
    experts: torch.nn.Module, axis: int, inputs: tuple[Any, dict[str, Any]], cuts: list[Cut]
) -> list[torch.Tensor]:
    """Each shard's partial: the experts' output with what other shards have set to zero.

    axis: of the columns. The first shard's has the biases that follow the products.
    """
    found = _down(experts)
    if found is None:
        raise UnsupportedModel("these experts have no last product to check")
    owner, name = found
    parameters = owner._parameters
    whole, bias = owner.get_parameter(name), parameters.get(f"{name}_bias")
    # A module that is given no choice computes every expert, one after the other.
    of_all = len(inputs[0]) + len(inputs[1]) == 1
    partials = []
    for number, cut in enumerate(cuts):
        masked = torch.zeros_like(whole)
        index = (cut.pieces, *(slice(None),) * (axis - 1), cut.inputs)
        _by_expert(experts, masked)[index] = _by_expert(experts, whole)[index]
        parameters[name] = parameter(masked)
        if bias is not None and number:
            parameters[f"{name}_bias"] = parameter(torch.zeros_like(bias))
        output = experts(*inputs[0], **inputs[1])
        output = output.reshape(-1, output.shape[-1])
        if of_all:
            output = output.unflatten(0, (len(masked), -1)).sum(0)
        partials.append(output)
    parameters[name] = whole
    if bias is not None:
        parameters[f"{name}_bias"] = bias
    return partials
