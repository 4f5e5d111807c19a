"""One layer of Transformers' model, and what of its products each shard would make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check.reference_weights import parameter
from skynet.errors import UnsupportedModel

# Row-parallel products in the order of their sums, and what reports call these.
PRODUCTS = {"o": "attention", "cross_o": "attention to the encoder", "down": "MLP"}
RECORDED = (*PRODUCTS, "q_norm", "k_norm")

Cuts = dict[str, list[slice]]  # of each product, each shard's numbers of its inputs


@dataclass(frozen=True)
class DenseLayer:
    """Partials of a layer, by a product with the other shards' inputs left out.

    partials: of each product, by its role and in the order of `PRODUCTS`, each shard's (tokens,
        hidden).
    norm_inputs: queries and keys (tokens, all heads), where all heads are normed together.
    """

    partials: dict[str, list[torch.Tensor]]
    norm_inputs: tuple[torch.Tensor, torch.Tensor] | None = None


class ReferenceLayer:
    """Keeps what goes into a layer's products while it runs."""

    def __init__(self, model: Any, arch: Architecture, number: int) -> None:
        """arch: of the layer's stack; number: in that stack."""
        self._arch, self._number = arch, number
        self.path = f"{path_of_layers(arch)}.{number}"
        self.module: torch.nn.Module = model.get_submodule(self.path)
        found = {role: self._find(model, role) for role in RECORDED}
        self._inner = {role: module for role, module in found.items() if module is not None}
        self._seen: dict[str, tuple[Any, dict[str, Any]]] = {}

    def record(self) -> None:
        """Keep inputs from now on, until they are forgotten."""
        for role, module in self._inner.items():

            def keep(
                _: torch.nn.Module, args: Any, kwargs: dict[str, Any], role: str = role
            ) -> None:
                # The first time only: experts are run again below, for partials.
                self._seen.setdefault(role, (args, kwargs))

            module.register_forward_pre_hook(keep, with_kwargs=True)

    def forget(self) -> None:
        self._seen = {}

    def dense(self, cuts: Cuts) -> DenseLayer:
        """What shards with these cuts would have made of what was kept."""
        roles = [role for role in PRODUCTS if self._arch.weight(role) is not None]
        partials = {role: self._partials(role, cuts[role]) for role in roles}
        if self._arch.qk_norm != "all":
            return DenseLayer(partials)
        queries, keys = (self._seen[role][0][0][0].float() for role in ("q_norm", "k_norm"))
        return DenseLayer(partials, (queries, keys))

    def _find(self, model: Any, role: str) -> torch.nn.Module | None:
        """The module whose inputs are those of a role; None of a role that there isn't."""
        weight = self._arch.weight(role)
        if weight is None:
            return None
        if not weight.in_pieces:
            found: torch.nn.Module = model.get_submodule(weight.name.format(layer=self._number))
            return found
        return _experts(self.module) if role == "down" else None

    def _partials(self, role: str, cuts: list[slice]) -> list[torch.Tensor]:
        inner = self._inner.get(role)
        if inner is None:
            raise UnsupportedModel(f"{self._arch.model_type} has no product {role!r} to check")
        args, kwargs = self._seen[role]
        if role == "down" and self._arch.num_experts:
            return _expert_products(inner, args, kwargs, cuts)
        x = args[0].reshape(-1, args[0].shape[-1]).float()
        matrix = inner.get_parameter("weight").float()
        matrix = matrix if weight_of(self._arch, role).transposed else matrix.t()  # (in, out)
        return [x[:, cut] @ matrix[cut] for cut in cuts]


def weight_of(arch: Architecture, role: str) -> Weight:
    """The weight of a role that every model has."""
    weight = arch.weight(role)
    if weight is None:
        raise UnsupportedModel(f"{arch.model_type} has no weight {role!r}")
    return weight


def path_of_layers(arch: Architecture) -> str:
    """Where Transformers' model has the layers of a stack."""
    if isinstance(arch, TransformersArchitecture):
        return arch.path
    return weight_of(arch, "o").name.partition(".{layer}")[0]


def _experts(module: torch.nn.Module) -> torch.nn.Module | None:
    for inner in module.modules():
        down = inner._parameters.get("down_proj")
        if down is not None and down.ndim == 3:
            return inner
    return None


def _expert_products(
    experts: torch.nn.Module, args: Any, kwargs: dict[str, Any], cuts: list[slice]
) -> list[torch.Tensor]:
    """The experts with all columns but a shard's at zero."""
    whole, found = experts._parameters["down_proj"], []
    for cut in cuts:
        masked = torch.zeros_like(whole)  # type: ignore[arg-type]
        masked[:, :, cut] = whole[:, :, cut]  # type: ignore[index]
        experts._parameters["down_proj"] = parameter(masked)
        made = experts(*args, **kwargs)
        found.append(made.reshape(-1, made.shape[-1]))
    experts._parameters["down_proj"] = whole
    return found
