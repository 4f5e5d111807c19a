"""The KV cache of one layer: a slot for each sequence; memory is taken as slots are written."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod

import torch

from skynet.planning.plan import Plan


@dataclass(frozen=True)
class KVLayout:
    """The size of a KV cache: sequences, and tokens of each."""

    num_slots: int
    slot_tokens: int

    @classmethod
    def of(cls, plan: Plan) -> KVLayout:
        return cls(plan.num_slots, plan.slot_tokens)


def allocate(
    layout: KVLayout, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Zeros of (slots, heads, tokens, head_dim); `heads` counts the K heads, then the V heads.

    Zeros and not garbage: keys past a sequence's end may be read under a mask, and a NaN among
    them would pass any mask. On a CPU they are pages of an anonymous mapping, which take memory
    when first written; calloc may reuse, and therefore clear, pages that were freed.
    """
    shape = (layout.num_slots, heads, layout.slot_tokens, head_dim)
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def copy_slot(cache: torch.Tensor, source: int, target: int, tokens: int) -> None:
    """Copy the keys and values of the first `tokens` tokens of slot `source` to `target`."""
    cache[target, :, :tokens].copy_(cache[source, :, :tokens])
