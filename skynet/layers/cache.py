"""The KV cache of one layer: a slot for each sequence, memory taken only where tokens were put."""

from __future__ import annotations

import mmap

import torch


def allocate(
    slots: int, heads: int, tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Zeros of (slots, heads, tokens, head_dim); `heads` counts the K heads, then the V heads.

    Zeros and not garbage: keys past a sequence's end may be read under a mask, and a NaN among
    them would pass any mask. On a CPU they are pages of an anonymous mapping, which take memory
    when they are first written: calloc, with blocks of this size, may reuse and clear others.
    """
    shape = (slots, heads, tokens, head_dim)
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, slots * heads * tokens * head_dim * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def copy_slot(cache: torch.Tensor, source: int, target: int, tokens: int) -> None:
    """The keys and values of the first `tokens` tokens of slot `source`, for `target` too."""
    cache[target, :, :tokens].copy_(cache[source, :, :tokens])
