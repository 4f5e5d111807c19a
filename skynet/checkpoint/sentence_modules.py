"""The modules of a sentence-transformers directory: their order, and the weights of module Dense.

`modules.json` lists the modules; each has a folder with its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skynet.architecture.config import MAX_SIZE
from skynet.checkpoint.safetensors_file import SINGLE_FILE, TensorInfo, read_header
from skynet.errors import CheckpointError
from skynet.models.text_heads import ACTIVATIONS

MODULES_FILE = "modules.json"


@dataclass(frozen=True)
class DenseModule:
    """A module Dense: its folder, its sizes, and the name of its activation's class."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str

    @property
    def tensor(self) -> str:
        """The name of its weight in the checkpoint, without `.weight`."""
        return f"{self.folder}.linear"

    @property
    def field(self) -> dict[str, Any]:
        """Its place in the config, under `MODULES`."""
        sizes = {"name": self.tensor, "in": self.inputs, "out": self.outputs}
        return {**sizes, "bias": self.bias, "activation": self.activation}


def dense_modules(path: Path) -> list[DenseModule]:
    """The modules Dense of a model directory, which follow each other after the pooling.

    Empty where `embedding_json` refuses the modules.

    Raises:
        CheckpointError: a file is not JSON, or has an impossible value.
    """
    modules = modules_of(path)
    kinds = [kind for kind, _ in modules]
    if "Dense" not in kinds or refused(path, modules):
        return []
    return [_dense(path, folder) for kind, folder in modules if kind == "Dense"]


def has_modules(path: Path) -> bool:
    """Whether the directory is of a sentence-transformers model."""
    return (path / MODULES_FILE).is_file()


def modules_of(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module, in order."""
    modules = read_object(path / MODULES_FILE) if has_modules(path) else []
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise CheckpointError(f"{path / MODULES_FILE} is not a list of modules; download it again")
    named = [(str(m.get("type", "")).rpartition(".")[2], str(m.get("path", ""))) for m in modules]
    for _, folder in named:
        if folder and (Path(folder).name != folder or folder == ".."):
            raise CheckpointError(f"{path / MODULES_FILE}: {folder!r} is not the name of a folder")
    return named


def refused(path: Path, modules: Sequence[tuple[str, str]]) -> str | None:
    """Why the modules are not supported; None if they are."""
    places = {"Transformer": 0, "Pooling": 1, "Dense": 2, "Normalize": 3}
    kinds = [kind for kind, _ in modules if kind != "Dropout"]  # which does nothing here
    for kind in kinds:
        if kind not in places:
            return kind
    order = [places[kind] for kind in kinds]
    if "Pooling" not in kinds:
        return "modules without Pooling"
    if order != sorted(order) or kinds.count("Pooling") > 1:
        return "modules in the order " + ", ".join(kinds)
    reasons = (_refused_dense(path, folder) for kind, folder in modules if kind == "Dense")
    return next((reason for reason in reasons if reason), None)


def _refused_dense(path: Path, folder: str) -> str | None:
    """Why a module Dense is not supported."""
    if not (path / folder / SINGLE_FILE).is_file():
        return (
            f"Dense without {folder}/{SINGLE_FILE} (a pickle can run code and is never opened: "
            "save the model again with sentence-transformers)"
        )
    if (activation := _dense(path, folder).activation) not in ACTIVATIONS:
        return f"Dense with the activation {activation}"
    config, usual = read_object(path / folder / "config.json"), "sentence_embedding"
    if any(config.get(f"module_{end}_name", usual) != usual for end in ("input", "output")):
        return "Dense of something else than the pooled vector"
    return None


def _dense(path: Path, folder: str) -> DenseModule:
    file = path / folder / "config.json"
    config = read_object(file)
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if not all(type(size) is int and 0 < size <= MAX_SIZE for size in (inputs, outputs)):
        raise CheckpointError(f"{file}: {inputs!r:.20} in_features, {outputs!r:.20} out_features")
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    return DenseModule(folder, inputs, outputs, bool(config.get("bias", True)), activation)


def dense_tensors(path: Path, modules: Sequence[DenseModule]) -> dict[str, TensorInfo]:
    """The weights of modules Dense, under the names that `DenseModule.tensor` gives them."""
    return {
        f"{module.folder}.{name}": info
        for module in modules
        for name, info in read_header(path / module.folder / SINGLE_FILE).items()
    }


def read_object(file: Path) -> Any:
    """An object, or the list of modules."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; download it again") from error
    if not isinstance(content, dict) and file.name != MODULES_FILE:
        raise CheckpointError(f"{file} holds no object; download it again")
    return content
