"""RMS norms and activations of rows, float32, in one pass; see steps.c. None: not supported."""

from __future__ import annotations

import torch

from skynet.kernels.library import kernels
from skynet.kernels.steps import ACTIVATIONS

# Those that are vectors in C.
VECTORS = {"silu", "gelu_new", "gelu_pytorch_tanh"}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor | None:
    """`x` (rows, size), or (rows, vectors, size) with a row of `weight` for each vector."""
    library = kernels() if x.is_cpu and x.dtype == torch.float32 else None
    if library is None or x.shape[1:] != weight.shape or not weight.is_contiguous():
        return None
    size = x.shape[-1]
    if x.stride()[1:] != weight.stride() or not x.numel():
        return None
    y = torch.empty(x.shape)
    library.rms_norm(
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        x.shape[0],
        weight.numel() // size,
        size,
        x.stride(0),
        eps,
        torch.get_num_threads(),
    )
    return y


def activate(name: str, x: torch.Tensor, gated: bool) -> torch.Tensor | None:
    """`x` (rows, 2 x columns), gate first, to act(gate) * up; or (rows, columns) to act(x)."""
    library = kernels() if x.is_cpu and x.dtype == torch.float32 else None
    if library is None or name not in VECTORS or x.ndim != 2 or not x.is_contiguous():
        return None
    rows, columns = x.shape[0], x.shape[1] // (2 if gated else 1)
    y = torch.empty(rows, columns)
    library.activate(
        x.data_ptr(),
        y.data_ptr(),
        rows,
        columns,
        ACTIVATIONS[name],
        gated,
        torch.get_num_threads(),
    )
    return y
