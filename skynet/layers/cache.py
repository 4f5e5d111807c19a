"""The KV cache of one layer: a slot for each sequence; memory is taken as slots are written."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from skynet.planning.plan import Plan
from skynet.planning.ranges import Range

Q8 = "q8"
MAX_CODE = 127


@dataclass(frozen=True)
class KVLayout:
    """The size of a KV cache: sequences, and tokens of each.

    dtype: of keys and values, "float32", "bfloat16" or "q8"; None: what is computed in.
    """

    num_slots: int
    slot_tokens: int
    dtype: str | None = None

    @classmethod
    def of(cls, plan: Plan) -> KVLayout:
        return cls(plan.num_slots, plan.slot_tokens, plan.kv_dtype)

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in memory; dtype: what is computed in."""
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, Q8: torch.int8, None: dtype}
        return kinds[self.dtype]


class KVCache:
    """Keys and values of one layer, in a slot for each sequence.

    q8 has signed codes of 8 bits, and a float32 scale for each token and head.
    """

    def __init__(
        self,
        layout: KVLayout,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """heads: the K heads, then the V heads; dtype: what is computed in."""
        self.dtype, self.kv_heads = dtype, heads // 2
        shape = (layout.num_slots, heads, layout.slot_tokens, head_dim)
        self.values = zeros(shape, layout.stored(dtype), device)
        self.scales = zeros(shape[:-1], torch.float32, device) if layout.dtype == Q8 else None

    def __setitem__(self, at: tuple[Any, ...], new: torch.Tensor) -> None:
        """Write keys and values at an index of (slots, heads, tokens); `new` has head_dim last."""
        if self.scales is None:
            self.values[at] = new.to(self.values.dtype)
            return
        self.values[at], self.scales[at] = coded(new)

    def read(self, slots: Range, keys: Range) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of tokens `keys`, each (slots, heads, keys, head_dim), in what is computed in."""
        at = (slice(slots.start, slots.stop), slice(None), slice(keys.start, keys.stop))
        both = self.values[at]
        if self.scales is not None:
            both = both.to(self.dtype) * self.scales[at].to(self.dtype)[..., None]
        elif both.dtype != self.dtype:
            both = both.to(self.dtype)
        return both[:, : self.kv_heads], both[:, self.kv_heads :]

    def tokens(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """K and V heads of single tokens, (tokens, heads, head_dim) float32."""
        both = self.values[slots, :, positions].float()
        return both if self.scales is None else both * self.scales[slots, :, positions][..., None]

    def clear(self, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """Zero the keys and values of tokens: see `SlotState.clear`.

        A slot's next sequence reads those past its end under a mask, and NaN passes any mask.
        """
        self.values[slots, :, positions] = 0
        if self.scales is not None:
            self.scales[slots, :, positions] = 0

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `SlotState.copy_slot`."""
        for part in (self.values, self.scales):
            if part is not None:
                part[target, :, :tokens].copy_(part[source, :, :tokens])


def coded(new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (..., size) in q8: codes of the same shape, scales (...) float32."""
    scales = new.float().abs().amax(-1, keepdim=True) / MAX_CODE
    # A scale of NaN makes all that is read with it NaN, as it was before.
    codes = (new / scales).round_().nan_to_num_(1).to(torch.int8)
    return codes, torch.where(scales.isinf(), torch.nan, scales)[..., 0]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros and not garbage: keys past a sequence's end may be read under a mask, and a NaN among
    them would pass any mask. On a CPU they are pages of an anonymous mapping, which take memory
    when first written; calloc may reuse, and therefore clear, pages that were freed.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
