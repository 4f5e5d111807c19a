"""Weights for Transformers' modules, a layer at a time, read with the safetensors library."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import resolve_names
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import CheckpointError
from skynet.transformers_backend.skeleton import quiet, stays_float32

SMALL_VOCABULARY = 16  # of models that only convert a layer's tensors


class ReferenceWeights:
    """Fills modules that have parameters without memory, and empties them again."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        arch: Architecture,
        model: Any,
        config: Any,
        dtype: torch.dtype,
    ) -> None:
        self._checkpoint, self._arch, self._dtype = checkpoint, arch, dtype
        self._model, self._config = model, config
        self._names = _names_in_file(arch, checkpoint)
        self._paths = _paths_by_module(model)
        self._empty: list[tuple[torch.nn.Module, str, Any]] = []
        self._fill_buffers()

    def fill(self, module: torch.nn.Module, path: str) -> None:
        """Give a module, which lies at `path`, and all within their weights.

        Raises:
            CheckpointError: a tensor has not the shape that Transformers expects.
        """
        places = list(_parameters(module, path))
        sources = {name: self._source(name) for name, _, _ in places}
        in_layer = path.rpartition(".")[2].isdecimal()
        convert = (
            in_layer
            and None in sources.values()
            and not isinstance(self._arch, TransformersArchitecture)
        )
        converted = self._convert(path) if convert else {}
        for name, owner, own in places:
            source, empty = sources[name], owner._parameters[own]
            value = converted.get(name) if source is None else self._read(source, name)
            value = self._of_experts(name) if value is None else value
            value = self._computed(owner) if value is None else value
            if value is None or empty is None or value.shape != empty.shape:
                raise CheckpointError(
                    f"{source or name} is {None if value is None else list(value.shape)}, and "
                    f"Transformers expects {None if empty is None else list(empty.shape)}: "
                    "config.json and the weights do not belong together"
                )
            self._empty.append((owner, own, empty))
            owner._parameters[own] = parameter(value)

    def free(self) -> None:
        """Let go of what was filled last."""
        for owner, own, empty in self._empty:
            owner._parameters[own] = empty
        self._empty = []

    def _source(self, name: str) -> str | None:
        """The tensor of the file that is this parameter; None of one that is made of others."""
        path, _, kind = name.rpartition(".")
        module = self._model.get_submodule(path)
        known = (f"{other}.{kind}" for other in self._paths[id(module)])
        found = next((self._names[other] for other in known if other in self._names), None)
        if found is not None or module is not self._model.get_output_embeddings():
            return found
        # Tied to the embedding, or called otherwise in files than in Transformers' class.
        head = self._arch.weight("embed" if self._arch.tied else "head")
        bias = self._arch.weight("head_bias")
        head = bias if kind == "bias" and bias is not None else head
        return None if head is None else self._names.get(head.tensor(kind=kind))

    def _of_experts(self, name: str) -> torch.Tensor | None:
        """A parameter of all experts of a family without a file, of the matrices of each."""
        experts = (
            self._arch.experts_of(name) if isinstance(self._arch, TransformersArchitecture) else []
        )
        made = [torch.cat([self._read(self._names[each]) for each in parts]) for parts in experts]
        return torch.stack(made) if made else None

    def _computed(self, module: torch.nn.Module) -> torch.Tensor | None:
        """A table that the file may lack, as Transformers computes it: of sinusoidal positions."""
        make = getattr(module, "create_weight", None)
        return None if make is None else make().to(self._dtype)

    def _fill_buffers(self) -> None:
        """What is a tensor of the file and no parameter: a vector, so it stays."""
        for name, buffer in self._model.named_buffers():
            if name in self._names:
                buffer.copy_(self._read(self._names[name]))

    def _read(self, source: str, name: str = "") -> torch.Tensor:
        """name: of the parameter, which may be one that stays float32 whatever the others are."""
        from safetensors import safe_open

        with safe_open(self._checkpoint.tensors[source].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(source)
        return tensor.to(torch.float32 if stays_float32(self._model, name) else self._dtype)

    def _convert(self, path: str) -> dict[str, torch.Tensor]:
        """A layer whose parameters are not the file's tensors, by Transformers' own loader.

        It loads the layer as the only one of a model that is small otherwise.
        """

        layers, _, number = path.rpartition(".")
        config = copy.deepcopy(self._config)
        config.num_hidden_layers, config.vocab_size = 1, SMALL_VOCABULARY
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[int(number)]]
        state = {
            f"{layers}.0{name.removeprefix(path)}": self._read(source)
            for name, source in self._names.items()
            if name.startswith(f"{path}.")
        }
        with quiet():
            small = type(self._model).from_pretrained(
                None, config=config, state_dict=state, dtype=self._dtype
            )
        found = small.get_submodule(layers)[0].named_parameters()
        return {f"{path}.{name}": value.detach() for name, value in found}


def _names_in_file(arch: Architecture, checkpoint: Checkpoint) -> dict[str, str]:
    """Each tensor's name in Transformers' model -> that in the file, which has tied ones once."""
    names = resolve_names(arch, checkpoint.tensors)
    for weight in (weight for stack in arch.stacks for weight in stack.weights):
        for other in weight.other_tensors:
            # Whatever we make of it: a tensor that the file has is what Transformers reads.
            own = other if other in checkpoint.tensors else names[weight.tensor()]
            names.setdefault(other, own)
    if isinstance(arch, TransformersArchitecture):
        names |= {reference: names[skynet] for reference, skynet in arch.module_names().items()}
    return names


def _paths_by_module(model: Any) -> dict[int, list[str]]:
    """All that a model calls each of its modules, which may stand in several places."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), []).append(path)
    return found


def parameter(value: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(value, requires_grad=False)


def _parameters(module: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """(name, the module that has it, what that calls it); of tied ones each."""
    for inner, owner in module.named_modules(prefix=path, remove_duplicate=False):
        for own, value in owner._parameters.items():
            if value is not None:
                yield f"{inner}.{own}", owner, own
