"""Large weights ask for large pages, which changes none of their numbers."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
import torch

from skynet.kernels.library import available
from skynet.kernels.products import PackedWeight

LIBRARIES = available()
PAGE = 2**21
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="none built")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without large pages"
)
@pytest.mark.parametrize("name", LIBRARIES)
def test_whole_pages_inside_of_the_memory_are_asked_for(name: str) -> None:
    # Given memory that starts between two pages
    with mmap.mmap(-1, 5 * PAGE) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        first = -(-(start + 100) // PAGE) * PAGE
        # When large pages are asked for
        LIBRARIES[name].large_pages(start + 100, 4 * PAGE)
        # Then the system has a region of them, of whole pages within
        assert advised(first, first + PAGE)
        assert not advised(start, start + 100)


def advised(start: int, stop: int) -> bool:
    """Whether [start, stop) lies in one region with the advice."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and ":" not in words[0]:
            low, high = (int(word, 16) for word in words[0].split("-"))
            inside = low <= start and stop <= high
        elif inside and words[0] == "VmFlags:":
            return "hg" in words
    return False


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_weight_of_several_pages_is_unchanged(name: str) -> None:
    weight = torch.randn(2100, 1024).bfloat16()
    assert torch.equal(PackedWeight(LIBRARIES[name], weight, None).dense(), weight)
