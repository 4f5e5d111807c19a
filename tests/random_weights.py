"""Random weights of an architecture, as a shard fetches them."""

from __future__ import annotations

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import staged_tensors
from skynet.layers.regions import Fetch
from skynet.planning.ranges import Range


def random_weights(arch: Architecture, dtype: torch.dtype = torch.bfloat16) -> Fetch:
    """Normal numbers with a deviation of 0.3, from where PyTorch's generator stands."""
    tensors = {
        tensor.name: (tensor, (torch.randn(tensor.shape) * 0.3).to(dtype))
        for tensor in staged_tensors(arch)
    }

    def fetch(name: str, region: Range) -> torch.Tensor:
        tensor, values = tensors[name]
        return values.narrow(tensor.axis, region.start, region.size)

    return fetch
