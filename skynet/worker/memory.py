"""Memory of the device that a shard worker computes on."""

from __future__ import annotations

import sys
from contextlib import suppress

import psutil

from skynet.settings import settings


def free_memory() -> int:
    """Bytes that are free: of the GPU if the worker computes on one, else of the host."""
    torch = sys.modules.get("torch")  # not loaded for this alone
    if settings().device.startswith("cuda") and hasattr(torch, "cuda"):
        with suppress(RuntimeError):  # no GPU after all: whoever loads says so
            return int(torch.cuda.mem_get_info(settings().device)[0])  # type: ignore[union-attr]
    return int(psutil.virtual_memory().available)
