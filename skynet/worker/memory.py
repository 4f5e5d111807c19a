"""Free memory of a shard worker's device."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import psutil

from skynet.settings import settings

CGROUPS = Path("/sys/fs/cgroup")  # version 2; version 1 has its limits elsewhere: none is seen


def free_memory() -> int:
    """Free bytes of the GPU if the worker computes on one, else of the host or the container."""
    torch = sys.modules.get("torch")  # not imported only for this
    if settings().device.startswith("cuda") and hasattr(torch, "cuda"):
        with suppress(RuntimeError):  # no GPU after all: loading the slice raises
            return int(torch.cuda.mem_get_info(settings().device)[0])  # type: ignore[union-attr]
    return min(int(psutil.virtual_memory().available), _free_in_cgroup(_own_cgroup()))


def _own_cgroup() -> Path:
    """This process's control group; in a container, its root."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return CGROUPS / line.removeprefix("0::").lstrip("/")
    return CGROUPS


def _free_in_cgroup(directory: Path) -> int:
    """Bytes below the memory limit of a control group; a cache of files counts as free."""
    try:
        limit = int((directory / "memory.max").read_text())  # "max": none
        used = int((directory / "memory.current").read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return sys.maxsize
    return max(0, limit - used + int(stat.get("inactive_file", 0)))
