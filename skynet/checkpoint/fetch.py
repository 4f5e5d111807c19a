"""Regions of a checkpoint's tensors as PyTorch tensors, without Redis in between."""

from __future__ import annotations

import torch

from skynet.architecture.architecture import Architecture
from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.tensor_plans import tensor_plans
from skynet.planning.ranges import Range


class CheckpointFetch:
    """A `skynet.layers.regions.Fetch` by canonical names.

    Raises:
        CheckpointError, UnsupportedModel: tensors are missing or not of the config's shapes.
    """

    def __init__(self, checkpoint: ModelSource, arch: Architecture) -> None:
        self._checkpoint, self._plans = checkpoint, tensor_plans(checkpoint, arch)

    def __call__(self, name: str, region: Range) -> torch.Tensor:
        plan = self._plans[name]
        array = self._checkpoint.read(plan.source_name, plan.axis, region.start, region.stop)
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if plan.dtype == "bfloat16" else tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(plan.num_bytes for plan in self._plans.values())
