"""Memory of packed weights, in pages of 2 MB where Linux has them.

A step reads every weight once. With pages of 4 KB a processor looks up each page's address, which
made one-row products of a small model a quarter slower.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod
from threading import Lock

import torch

# Small weights share a mapping, since a page holds several; it is unmapped when all are gone.
CHUNK_BYTES = 8 * 2**20
ALIGNMENT = 64


class WeightMemory:
    """Makes tensors whose memory is zero, mapped for weights only."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of one number or more."""
        num_bytes = prod(shape) * dtype.itemsize
        mapping, start = self._take(num_bytes)
        flat = torch.frombuffer(mapping, dtype=dtype, count=prod(shape), offset=start)
        return flat.view(*shape)

    def _take(self, num_bytes: int) -> tuple[mmap.mmap, int]:
        """A mapping, and where in it so many bytes are free."""
        if num_bytes > CHUNK_BYTES // 4:
            return _mapped(num_bytes), 0
        with self._lock:
            if self._chunk is None or self._used + num_bytes > CHUNK_BYTES:
                self._chunk, self._used = _mapped(CHUNK_BYTES), 0
            start = self._used
            self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
            return self._chunk, start


def _mapped(num_bytes: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without large pages
    return mapping


WEIGHT_MEMORY = WeightMemory()
