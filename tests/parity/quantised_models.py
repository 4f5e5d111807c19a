"""Tiny checkpoints with quantised weights, and the same weights as numbers, for Transformers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.checkpoint.staged_form import in_staged_form
from skynet.checkpoint.tensor_plans import tensor_plans
from skynet.models.registry import load_architecture
from skynet.wire.blocks import from_blocks
from skynet.wire.tensor_dtypes import block_format

SINGLE = "model.safetensors"


class QuantisedModel:
    """A checkpoint as it is staged with `weights`: what the harness and a shard need of it."""

    def __init__(
        self, directory: Path, weights: str | None, *, source: Checkpoint | None = None
    ) -> None:
        checkpoint = source or Checkpoint(directory, "tiny", directory / "cache")
        self.source = in_staged_form(checkpoint, weights)
        self.arch = load_architecture(self.source.config)
        self.plans = tensor_plans(self.source, self.arch)
        self.fetch = CheckpointFetch(self.source, self.arch)

    @property
    def formats(self) -> set[str]:
        return {str(form) for form in self.arch.formats.values()}

    def dequantised(self, directory: Path, into: Path) -> Path:
        """A copy of the checkpoint with each quantised tensor's numbers, in float32."""
        transposed = {w.name for stack in self.arch.stacks for w in stack.weights if w.transposed}
        with safe_open(directory / SINGLE, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, plan in self.plans.items():
            form = block_format(plan.dtype)
            if form is not None:
                blocks = self.source.read(plan.source_name, 0, 0, plan.shape[0])
                numbers = torch.from_numpy(from_blocks(blocks, form).dequantised())
                if name in self.source.original.packed.numbers:
                    self._pack(name, numbers, tensors)
                    continue
                is_transposed = _template(name) in transposed
                stored = numbers.t() if is_transposed else numbers
                assert stored.shape == tensors[plan.source_name].shape
                tensors[plan.source_name] = stored.contiguous()
        into.mkdir()
        for file_name in directory.glob("*.json"):
            shutil.copy(file_name, into)
        config: dict[str, Any] = json.loads((into / "config.json").read_text())
        (into / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
        floats = {name: each.float() for name, each in tensors.items()}
        save_file(floats, into / SINGLE, metadata={"format": "pt"})
        return into

    def _pack(self, name: str, numbers: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        """Write an expert's numbers to the tensor of all experts."""
        view = self.source.original.packed.numbers[name]
        layer = re.findall(r"layers\.(\d+)\.", name)[0]
        expert = tensors[view.packed.tensor.format(layer=layer)][view.expert]
        matrix = expert.t() if view.packed.transposed else expert
        matrix[view.packed.outputs(0, len(numbers), len(numbers))] = numbers.to(matrix.dtype)


def _template(tensor: str) -> str:
    """The name of a weight in its family's file: numbers of layers as `{layer}`."""
    parts = tensor.removesuffix(".weight").split(".")
    return ".".join("{layer}" if part.isdigit() else part for part in parts)
