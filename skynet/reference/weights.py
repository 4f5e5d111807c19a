"""Weights of Transformers' modules, a layer at a time, read with the safetensors library."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import other_names, resolve_names
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import CheckpointError
from skynet.reference.library import quiet, stays_float32
from skynet.reference.model import renaming, with_module_names

# Fields of configs: a kind for each layer, and how many layers come before those with experts.
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types")
DENSE_LAYERS = ("num_dense_layers", "first_k_dense_replace")
SMALL_VOCABULARY = 16  # of a model that is made only to convert a layer's tensors


class ReferenceWeights:
    """Loads the parameters of modules on the meta device, and frees them again."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        arch: Architecture,
        model: Any,
        config: Any,
        dtype: torch.dtype,
    ) -> None:
        self._checkpoint, self._arch, self._dtype = checkpoint, with_module_names(arch), dtype
        self._model, self._config = model, config
        self._names = _names_in_file(arch, checkpoint)
        self._paths = _paths_by_module(model)
        self._empty: list[tuple[torch.nn.Module, str, Any]] = []
        self._fill_buffers()
        _place_table(model, dtype)

    def fill(self, module: torch.nn.Module, path: str) -> None:
        """Load the weights of the module at `path` and of its submodules.

        Raises:
            CheckpointError: a tensor is missing, or its shape is not Transformers'.
        """
        parameters = list(_parameters(module, path))
        sources = {name: self._source(name) for name, _, _ in parameters}
        in_layer = path.rpartition(".")[2].isdecimal()
        convert = (
            in_layer
            and None in sources.values()
            and not isinstance(self._arch, TransformersArchitecture)
        )
        converted = self._convert(path) if convert else {}
        for name, owner, attribute in parameters:
            source, empty = sources[name], owner._parameters[attribute]
            value = converted.get(name) if source is None else self._read(source, name)
            value = self._experts(name) if value is None else value
            value = self._computed(owner) if value is None else value
            if value is None or empty is None or value.shape != empty.shape:
                raise CheckpointError(
                    f"{source or name} is {'missing' if value is None else list(value.shape)}, and "
                    f"Transformers expects {None if empty is None else list(empty.shape)}: "
                    "config.json and the weights do not match"
                )
            self._empty.append((owner, attribute, empty))
            owner._parameters[attribute] = parameter(value)

    def keep(self, path: str) -> None:
        """Load the weights of the module at `path` for good: its parameters are read without it."""
        self.fill(self._model.get_submodule(path), path)
        self._empty = []

    def free(self) -> None:
        """Free the weights loaded since the last call."""
        for owner, attribute, empty in self._empty:
            owner._parameters[attribute] = empty
        self._empty = []

    def _source(self, name: str) -> str | None:
        """The file's tensor for this parameter; None if it is made from other tensors."""
        path, _, kind = name.rpartition(".")
        module = self._model.get_submodule(path)
        known = (f"{other}.{kind}" for other in self._paths[id(module)])
        source = next((self._names[other] for other in known if other in self._names), None)
        if source is not None or module is not self._model.get_output_embeddings():
            return source
        # Tied to the embedding, or under another name in files than in Transformers' class.
        head = self._arch.weight("embed" if self._arch.tied else "head")
        bias = self._arch.weight("head_bias")
        head = bias if kind == "bias" and bias is not None else head
        return None if head is None else self._names.get(head.tensor(kind=kind))

    def _experts(self, name: str) -> torch.Tensor | None:
        """All experts' parameter on the Transformers backend, stacked from each one's matrices."""
        experts = (
            self._arch.experts_of(name) if isinstance(self._arch, TransformersArchitecture) else []
        )
        matrices = [
            torch.cat([self._read(self._names[part]) for part in parts]) for parts in experts
        ]
        return torch.stack(matrices) if matrices else None

    def _computed(self, module: torch.nn.Module) -> torch.Tensor | None:
        """A table that files may lack, as Transformers computes it: sinusoidal positions."""
        make = getattr(module, "create_weight", None)
        return None if make is None else make().to(self._dtype)

    def _fill_buffers(self) -> None:
        """Load buffers that the file has tensors for; they are vectors, so they stay loaded."""
        for name, buffer in self._model.named_buffers():
            if name in self._names:
                buffer.copy_(self._read(self._names[name]))

    def _read(self, source: str, name: str = "") -> torch.Tensor:
        """name: the parameter, which Transformers may keep in float32."""
        from safetensors import safe_open

        dtype = torch.float32 if stays_float32(self._model, name) else self._dtype
        if source in self._checkpoint.quantised:
            return torch.from_numpy(self._checkpoint.read_whole(source)).to(dtype)
        with safe_open(self._checkpoint.tensors[source].file, framework="pt") as file:
            stored_as = self._checkpoint.tensors[source].stored_as or source
            tensor: torch.Tensor = file.get_tensor(stored_as)
        return tensor.to(dtype)

    def _convert(self, path: str) -> dict[str, torch.Tensor]:
        """Parameters of a layer that Transformers' loader makes from other tensors of the file.

        It loads the layer into a small model that has no other.
        """
        layers, _, number = path.rpartition(".")
        config = copy.deepcopy(self._config)
        config.num_hidden_layers, config.vocab_size = 1, SMALL_VOCABULARY
        for field in KINDS_OF_LAYERS:
            if getattr(config, field, None):
                setattr(config, field, [getattr(config, field)[int(number)]])
        for field in DENSE_LAYERS:
            if isinstance(getattr(config, field, None), int):
                setattr(config, field, max(0, getattr(config, field) - int(number)))
        state = {
            f"{layers}.0{name.removeprefix(path)}": self._read(source)
            for name, source in self._names.items()
            if name.startswith(f"{path}.")
        }
        with quiet():
            small = type(self._model).from_pretrained(
                None, config=config, state_dict=state, dtype=self._dtype
            )
        parameters = small.get_submodule(layers)[0].named_parameters()
        return {f"{path}.{name}": value.detach() for name, value in parameters}


def _names_in_file(arch: Architecture, checkpoint: Checkpoint) -> dict[str, str]:
    """Transformers' name of each tensor -> the file's, which has tied tensors once."""
    names = resolve_names(arch, checkpoint.tensors)
    packed = checkpoint.packed  # Transformers, too, has all experts in one tensor
    names = {name: source for name, source in names.items() if source not in packed}
    names |= packed.stored
    for name, others in other_names(arch).items():
        for other in others:
            # Transformers reads the file's tensor of this name, if there is one.
            names.setdefault(other, other if other in checkpoint.tensors else names[name])
    if isinstance(arch, TransformersArchitecture):
        return names | {module: names[skynet] for module, skynet in arch.module_names().items()}
    renamed = renaming(arch.model_type)
    return {renamed(name): source for name, source in names.items()}


def _place_table(model: Any, dtype: torch.dtype) -> None:
    """Llama 4 moves its inputs to the device of the embedding's weight, before the embedding is
    called: until it is loaded it is a NaN on the CPU, in the shape of the weight.
    """
    table = model.get_input_embeddings()
    if "weight" not in table._parameters:
        return
    absent = torch.full((1, 1), float("nan"), dtype=dtype)
    table._parameters["weight"] = parameter(absent.expand(table.weight.shape))


def _paths_by_module(model: Any) -> dict[int, list[str]]:
    """The paths of each module by its id; one module may have several."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    return paths


def parameter(value: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(value, requires_grad=False)


def _parameters(module: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """(full name, its module, its name there) of each parameter, tied ones included."""
    for inner, owner in module.named_modules(prefix=path, remove_duplicate=False):
        for attribute, value in owner._parameters.items():
            if value is not None:
                yield f"{inner}.{attribute}", owner, attribute
