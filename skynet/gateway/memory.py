"""Memory that the C library keeps: a gateway lives long and holds little.

Loading a tokenizer leaves more free memory behind than the tokenizer takes, and each thread has
heaps of its own; glibc gives neither back by itself.
"""

from __future__ import annotations

import ctypes
import sys

M_ARENA_MAX = -8  # of glibc's mallopt
HEAPS = 2


def share_heaps() -> None:
    """Let all threads use a few heaps; before there are threads. Does nothing without glibc."""
    if libc := _glibc():
        libc.mallopt(M_ARENA_MAX, HEAPS)


def give_back_memory() -> None:
    """Give what is free to the system. Does nothing without glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
