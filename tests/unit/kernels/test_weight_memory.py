"""Memory of packed weights: nobody else's, in large pages where there are any, given back."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from skynet.kernels import memory
from skynet.kernels.memory import CHUNK_BYTES, WeightMemory

SIZES = [1, 63, 64, 100, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + 1, CHUNK_BYTES - 8, CHUNK_BYTES + 5]


def test_no_two_tensors_share_a_byte() -> None:
    # Given tensors of many sizes and dtypes
    weights = WeightMemory()
    dtypes = [torch.uint8, torch.bfloat16, torch.float32]
    made = [weights.zeros((size,), dtypes[n % 3]) for n, size in enumerate(SIZES * 4)]
    assert not any(bool(tensor.any()) for tensor in made)
    # When each is written / Then it keeps its numbers
    for number, tensor in enumerate(made):
        tensor.fill_(number + 1)
    assert all(bool((tensor == n + 1).all()) for n, tensor in enumerate(made))
    # And each starts at a cache line
    assert {tensor.data_ptr() % 64 for tensor in made} == {0}


def test_memory_is_given_back() -> None:
    # Given as many small tensors as fill several mappings, and one large
    weights = WeightMemory()
    small = [weights.zeros((CHUNK_BYTES // 8,), torch.uint8) for _ in range(24)]
    large = weights.zeros((3, CHUNK_BYTES), torch.uint8)
    addresses = [tensor.data_ptr() for tensor in (*small[:8], large)]
    assert all(map(is_mapped, addresses))
    # When those of the first mapping and the large one are dropped
    del small[:8], large
    # Then their memory is the system's again, and the others' is not
    assert not any(map(is_mapped, addresses))
    assert all(is_mapped(tensor.data_ptr()) for tensor in small)


def test_large_pages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("a system without large pages")
    asked: list[int] = []

    class Mapping(mmap.mmap):
        def madvise(self, option: int, *region: int) -> None:
            asked.append(option)
            raise OSError("a kernel without large pages")

    monkeypatch.setattr(memory.mmap, "mmap", Mapping)
    # When memory is needed / Then large pages are asked for, and can be done without
    assert WeightMemory().zeros((4, 4), torch.float32).shape == (4, 4)
    assert asked == [mmap.MADV_HUGEPAGE]


def is_mapped(address: int) -> bool:
    """Whether the process has memory at an address, for which /proc has a line."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(word, 16) for word in line.split()[0].split("-"))
        if low <= address < high:
            return True
    return False
