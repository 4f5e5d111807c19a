"""Directories as sentence-transformers saves them, around a model of Transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from skynet.architecture.tensors import resolve_names, staged_tensors
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range

TORCH = "torch.nn.modules."


class SentenceCheckpoint:
    """A directory with its modules, for `harness.cluster_of`."""

    is_rounded = False

    def __init__(self, directory: Path) -> None:
        self.files = Checkpoint(directory, directory.name, directory / ".cache")
        self.arch = load_architecture(self.files.config)
        self._axes = {tensor.name: tensor.axis for tensor in staged_tensors(self.arch)}
        self._names = resolve_names(self.arch, self.files.tensors)

    def fetch(self, name: str, region: Range) -> torch.Tensor:
        read = self.files.read(self._names[name], self._axes[name], region.start, region.stop)
        return torch.from_numpy(read.copy())


def save_modules(
    directory: Path, pooling: dict[str, Any], dense: list[torch.nn.Sequential], normalize: bool
) -> None:
    """modules.json and its folders; each of `dense` is a product and an activation."""
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else ""}
        | {"type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for number, (product, activation) in enumerate(dense, 2):
        folder = directory / f"{number}_Dense"
        folder.mkdir(exist_ok=True)
        has_bias = product.bias is not None
        config = {"in_features": product.in_features, "out_features": product.out_features}
        name = f"{type(activation).__module__}.{type(activation).__name__}"
        config |= {"bias": has_bias, "activation_function": name}
        (folder / "config.json").write_text(json.dumps(config))
        weights = {f"linear.{name}": value for name, value in product.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
