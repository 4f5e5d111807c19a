"""Memory of the device that a shard worker computes on."""

from __future__ import annotations

import sys

import psutil

from skynet.settings import settings


def free_memory() -> int:
    """Bytes that are free: of the GPU if the worker computes on one, else of the host."""
    torch = sys.modules.get("torch")  # not loaded for this alone
    if settings().device.startswith("cuda") and torch is not None:
        free, _ = torch.cuda.mem_get_info(settings().device)
        return int(free)
    return int(psutil.virtual_memory().available)
