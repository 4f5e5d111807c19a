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
from skynet.wire.step import Row

QUERY_BLOCK = 512  # queries that have a mask


class Bias(Protocol):
    """What a shard's heads add to their scores by the places of query and key."""

    def of(self, positions: torch.Tensor, keys: Range) -> torch.Tensor:
        """(kv_heads, group, tokens, keys) float32 for tokens at `positions` (tokens,)."""
        ...


@dataclass(frozen=True)
class TextBatch:
    """Some texts of one length, one after the other.

    mask: what is added to the scores, (1, heads or 1, length, length), for the last query first: so
        it is a view of one number for each distance, and long texts take no memory for it.
    """

    tokens: Range
    count: int
    mask: torch.Tensor | None


def text_batches(
    rows: Sequence[Row],
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    bias: Bias | None = None,
) -> list[TextBatch]:
    """One call of the kernel for each run of texts that are equally long.

    window: a token sees those that are no more than so far away, in either direction.

    Raises:
        StepFailed: a row that is not a whole text.
    """
    found: list[TextBatch] = []
    for row in rows:
        if row.start:
            raise StepFailed(f"slot {row.slot}: a text starts at token 0, not at {row.start}")
        length, last = len(row.tokens), found[-1] if found else None
        if last is not None and last.tokens.size == length * last.count:
            tokens = Range(last.tokens.start, last.tokens.stop + length)
            found[-1] = TextBatch(tokens, last.count + 1, last.mask)
        else:
            start = last.tokens.stop if last else 0
            mask = _mask(length, window, dtype, device, bias)
            found.append(TextBatch(Range(start, start + length), 1, mask))
    return found


def _mask(
    length: int, window: int | None, dtype: torch.dtype, device: torch.device, bias: Bias | None
) -> torch.Tensor | None:
    """See `TextBatch.mask`. All depends on the distance alone, so that a row of them is enough."""
    if window is not None and window >= length - 1:
        window = None  # it reaches over all of the text
    if bias is None and window is None:
        return None
    middle, places = length - 1, Range(0, 2 * length - 1)
    by_distance = torch.zeros(1, places.size)
    if bias is not None:
        by_distance = bias.of(torch.tensor([middle]), places).flatten(0, 2)
    if window is not None:
        far = (torch.arange(places.size) - middle).abs() > window
        by_distance = by_distance.masked_fill(far, float("-inf"))
    return by_distance.to(device, dtype).unfold(1, length, 1)[None]


def attend_text_batches(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    calls: Sequence[TextBatch],
    scale: float,
) -> torch.Tensor:
    """Queries, keys and values (tokens, heads, head_dim) to (tokens, heads x head_dim)."""
    out = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    for call in calls:
        part = slice(call.tokens.start, call.tokens.stop)
        split = [x[part].unflatten(0, (call.count, -1)) for x in (queries, keys, values)]
        query, key, value = (x.transpose(1, 2) for x in split)
        mixed = _attend(query, key, value, call.mask, scale)
        out[part] = mixed.transpose(1, 2).reshape(call.tokens.size, -1)
    return out


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """(texts, heads, length, head_dim) each, the mask as of `TextBatch`, to the same."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    # The kernel lays the mask out: some queries at a time.
    blocks = zip(query.flip(2).split(QUERY_BLOCK, 2), mask.split(QUERY_BLOCK, 2), strict=True)
    mixed = [
        F.scaled_dot_product_attention(some, key, value, attn_mask=own, scale=scale)
        for some, own in blocks
    ]
    return torch.cat(mixed, 2).flip(2)
