"""Attention of an encoder: every token of a text sees all others; whole texts, no KV cache.

Rows are ragged: consecutive texts of the same length are computed in one call, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from skynet.errors import StepFailed
from skynet.layers.disentangled import Distances
from skynet.planning.ranges import Range
from skynet.wire.step import Row

QUERY_CHUNK = 512  # queries per kernel call under a mask


class Bias(Protocol):
    """The bias that a shard's heads add to their scores, by the positions of query and key."""

    def of(self, positions: torch.Tensor, keys: Range) -> torch.Tensor:
        """(kv_heads, group, tokens, keys) float32 for tokens at `positions` (tokens,)."""
        ...

    def by_distance(self, count: int) -> torch.Tensor | None:
        """(heads, count) float32 by the distance from query to key; None: it depends on more."""
        ...


@dataclass(frozen=True)
class TextBatch:
    """Consecutive texts of the same length.

    mask: added to the scores, (1, heads or 1, length, length), the last query first. In that order
        it is a view of one number per distance, and needs no memory for each pair of tokens.
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
    """One batch for each run of consecutive texts of the same length.

    window: how many tokens away a token sees, in either direction.

    Raises:
        StepFailed: a row that is not a whole text.
    """
    batches: list[TextBatch] = []
    for row in rows:
        if row.start:
            raise StepFailed(f"slot {row.slot}: a text starts at token 0, not at {row.start}")
        length, last = len(row.tokens), batches[-1] if batches else None
        if last is not None and last.tokens.size == length * last.count:
            tokens = Range(last.tokens.start, last.tokens.stop + length)
            batches[-1] = TextBatch(tokens, last.count + 1, last.mask)
        else:
            start = last.tokens.stop if last else 0
            mask = _mask(length, window, dtype, device, bias)
            batches.append(TextBatch(Range(start, start + length), 1, mask))
    return batches


def _mask(
    length: int, window: int | None, dtype: torch.dtype, device: torch.device, bias: Bias | None
) -> torch.Tensor | None:
    """See `TextBatch.mask`. It depends on the distance alone, so one row of distances is enough."""
    if window is not None and window >= length - 1:
        window = None  # it covers the whole text
    if bias is None and window is None:
        return None
    middle, distances = length - 1, Range(0, 2 * length - 1)
    by_distance = torch.zeros(1, distances.size)
    if bias is not None:
        by_distance = bias.of(torch.tensor([middle]), distances).flatten(0, 2)
    if window is not None:
        far = (torch.arange(distances.size) - middle).abs() > window
        by_distance = by_distance.masked_fill(far, float("-inf"))
    return by_distance.to(device, dtype).unfold(1, length, 1)[None]


def attend_text_batches(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batches: Sequence[TextBatch],
    scale: float,
    distances: Distances | None = None,
) -> torch.Tensor:
    """Queries (tokens, heads, head_dim), keys and values of as many heads or fewer, to (tokens,
    heads x head_dim)."""
    group = queries.shape[1] // keys.shape[1]
    if group > 1:  # texts are short, and their keys and values are not kept
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    out = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    for batch in batches:
        part = slice(batch.tokens.start, batch.tokens.stop)
        split = [x[part].unflatten(0, (batch.count, -1)) for x in (queries, keys, values)]
        query, key, value = (x.transpose(1, 2) for x in split)
        if distances is not None:
            mixed = distances.attend(query, key, value, scale)
        else:
            mixed = _attend(query, key, value, batch.mask, scale)
        out[part] = mixed.transpose(1, 2).reshape(batch.tokens.size, -1)
    return out


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """All (texts, heads, length, head_dim), the result too; the mask is as in `TextBatch`."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    # The kernel copies the mask into memory, so only some queries are computed at a time.
    chunks = zip(query.flip(2).split(QUERY_CHUNK, 2), mask.split(QUERY_CHUNK, 2), strict=True)
    mixed = [
        F.scaled_dot_product_attention(queries, key, value, attn_mask=mask_rows, scale=scale)
        for queries, mask_rows in chunks
    ]
    return torch.cat(mixed, 2).flip(2)
