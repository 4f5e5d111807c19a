"""Free memory of a shard worker's device."""

from __future__ import annotations

import sys
from contextlib import suppress

import psutil

from skynet.settings import settings


def free_memory() -> int:
    """Free bytes of the GPU if the worker computes on one, else of the host."""
    torch = sys.modules.get("torch")  # not imported only for this
    if settings().device.startswith("cuda") and hasattr(torch, "cuda"):
        with suppress(RuntimeError):  # no GPU after all: loading the slice raises
            return int(torch.cuda.mem_get_info(settings().device)[0])  # type: ignore[union-attr]
    return int(psutil.virtual_memory().available)
