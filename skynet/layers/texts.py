"""Attention of an encoder: every token of a text sees the others, whole texts at a time, no cache.

Rows are ragged: texts of one length that follow each other are computed in one call, none padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from skynet.errors import StepFailed
from skynet.planning.ranges import Range
from skynet.step import Row


class Bias(Protocol):
    """What a shard's heads add to their scores by the places of query and key."""

    def of(self, positions: torch.Tensor, keys: Range) -> torch.Tensor:
        """(kv_heads, group, tokens, keys) float32 for tokens at `positions` (tokens,)."""
        ...


@dataclass(frozen=True)
class Texts:
    """Some texts of one length, one after the other."""

    tokens: Range
    count: int
    mask: torch.Tensor | None  # added to the scores; broadcasts to (heads, length, length)


def texts_of(
    rows: Sequence[Row],
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    bias: Bias | None = None,
) -> list[Texts]:
    """One call of the kernel for each run of texts that are equally long.

    window: a token sees those that are no more than so far away, in either direction.

    Raises:
        StepFailed: a row that is not a whole text.
    """
    found: list[Texts] = []
    for row in rows:
        if row.start:
            raise StepFailed(f"slot {row.slot}: a text starts at token 0, not at {row.start}")
        length, last = len(row.tokens), found[-1] if found else None
        if last is not None and last.tokens.size == length * last.count:
            tokens = Range(last.tokens.start, last.tokens.stop + length)
            found[-1] = Texts(tokens, last.count + 1, last.mask)
        else:
            start = last.tokens.stop if last else 0
            mask = _mask(length, window, dtype, device, bias)
            found.append(Texts(Range(start, start + length), 1, mask))
    return found


def _mask(
    length: int, window: int | None, dtype: torch.dtype, device: torch.device, bias: Bias | None
) -> torch.Tensor | None:
    place, mask = torch.arange(length), None
    if bias is not None:
        mask = bias.of(place, Range(0, length)).flatten(0, 1)
    if window is not None and window < length - 1:
        far = (place[:, None] - place).abs() > window
        mask = torch.zeros(length, length) if mask is None else mask
        mask = mask.masked_fill(far, float("-inf"))
    return None if mask is None else mask.to(device, dtype)


def attend_texts(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    calls: Sequence[Texts],
    scale: float,
) -> torch.Tensor:
    """Queries, keys and values (tokens, heads, head_dim) to (tokens, heads x head_dim)."""
    out = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    for call in calls:
        part = slice(call.tokens.start, call.tokens.stop)
        split = [x[part].unflatten(0, (call.count, -1)) for x in (queries, keys, values)]
        query, key, value = (x.transpose(1, 2) for x in split)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=call.mask, scale=scale)
        out[part] = mixed.transpose(1, 2).reshape(call.tokens.size, -1)
    return out
