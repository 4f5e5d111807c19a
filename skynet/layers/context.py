"""What all layers of a step share, made once: positions, rope factors, who attends to which keys.

Rows are ragged: chunks of prompts next to single tokens. Single tokens whose slots are neighbours
are attended to in one call when their lengths are similar; all else row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from skynet.errors import StepFailed
from skynet.layers.encoder_attention import Bias, TextBatch, text_batches
from skynet.layers.encoder_kv import Attend, encoder_kv_attends
from skynet.layers.rope import Rotary
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.wire.step import Row, Step

# A call of the attention kernel costs as much as it costs to read so many bytes of keys and values
# in vain; rows are batched as long as padding costs less.
CALL_BYTES = 64 * 1024


@dataclass(frozen=True)
class StepContext:
    """A step as the layers see it."""

    step: Step
    ids: torch.Tensor  # (tokens,) int64
    positions: torch.Tensor  # (tokens,) int64
    slots: torch.Tensor  # (tokens,) int64
    ropes: tuple[torch.Tensor, ...]  # of each rope of the model (tokens, 1, dims / 2) complex64
    attends: dict[int | None, list[Attend]]  # by window
    only: tuple[int, int] | None  # (slot, position) of the only token, if there is but one
    text_batches: dict[int | None, list[TextBatch]] = field(
        default_factory=dict
    )  # of an encoder, by window
    encoder_kvs: list[Attend] = field(default_factory=list)  # slots are places of what it has read


def make_context(
    step: Step,
    plan: Plan,
    vocab_size: int,
    rotaries: Sequence[Rotary],
    windows: Iterable[int | None],
    token_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    bias: Bias | None = None,
    bidirectional: bool = False,
) -> StepContext:
    """Lay a step out; `token_bytes` is what one token's K and V take in one layer of this shard.

    Raises:
        StepFailed: a row that does not fit the plan; names the slot and the limit.
    """
    _check(step, plan, vocab_size)
    counts = [len(row.tokens) for row in step.rows]
    flat = [
        [token for row in step.rows for token in row.tokens],
        [position for row in step.rows for position in range(row.start, row.stop)],
        [row.slot for row, count in zip(step.rows, counts, strict=True) for _ in range(count)],
        [row.prompt_length for row, n in zip(step.rows, counts, strict=True) for _ in range(n)],
    ]
    ids, positions, slots, prompt_lengths = torch.tensor(flat, device=device).unbind()
    masks = _Masks(dtype, device, bias)
    slack = max(1, CALL_BYTES // max(1, token_bytes))
    different = set(windows)
    return StepContext(
        step=step,
        ids=ids,
        positions=positions,
        slots=slots,
        ropes=tuple(rotary.factors(positions, prompt_lengths) for rotary in rotaries),
        attends={}
        if bidirectional
        else {window: _attends(step.rows, window, slack, masks) for window in different},
        only=(step.rows[0].slot, step.rows[0].start) if len(ids) == 1 else None,
        text_batches={
            window: text_batches(step.rows, window, dtype, device, bias) for window in different
        }
        if bidirectional
        else {},
        encoder_kvs=encoder_kv_attends(step.rows, slack, dtype, device),
    )


def _check(step: Step, plan: Plan, vocab_size: int) -> None:
    if not step.rows:
        raise StepFailed(f"step {step.number} has no rows")
    for row in step.rows:
        if not 0 <= row.slot < plan.num_slots:
            raise StepFailed(f"slot {row.slot} is none of the plan's {plan.num_slots}")
        if row.source is not None and not 0 <= row.source < plan.num_slots:
            raise StepFailed(f"source slot {row.source} is none of the plan's {plan.num_slots}")
        if not row.tokens or row.start < 0 or row.stop > plan.slot_tokens:
            raise StepFailed(
                f"slot {row.slot}: tokens [{row.start}, {row.stop}) are none or do not fit its "
                f"{plan.slot_tokens}"
            )
        if row.encoder_kv is not None and not (
            0 <= row.encoder_kv[0] < plan.num_slots and 1 <= row.encoder_kv[1] <= plan.slot_tokens
        ):
            raise StepFailed(f"slot {row.slot}: there is no encoder KV {row.encoder_kv}")
        if min(row.tokens) < 0 or max(row.tokens) >= vocab_size:
            raise StepFailed(f"slot {row.slot}: a token id is outside the vocabulary {vocab_size}")


@dataclass(frozen=True)
class _Masks:
    """Makes what is added to the scores: minus infinity where nothing may be seen, and a bias."""

    dtype: torch.dtype
    device: torch.device
    bias: Bias | None

    def single_tokens(
        self, rows: Sequence[Row], seen: Sequence[Range], keys: Range
    ) -> torch.Tensor | None:
        """Broadcasts to (slots, kv_heads, group, keys) for one token of each of some rows."""
        visible = None
        if any(own != keys for own in seen):
            index = torch.arange(keys.start, keys.stop)
            starts = torch.tensor([own.start for own in seen])[:, None]
            stops = torch.tensor([own.stop for own in seen])[:, None]
            visible = ((index >= starts) & (index < stops))[:, None, None]
        bias = None
        if self.bias is not None:
            positions = torch.tensor([row.start for row in rows])
            bias = self.bias.of(positions, keys).permute(2, 0, 1, 3)
        return self._additive(visible, bias)

    def one_row(
        self, row: Row, keys: Range, window: int | None, causal: bool
    ) -> torch.Tensor | None:
        """Broadcasts to (kv_heads, group, tokens, keys) for the tokens of one row."""
        position = torch.arange(row.start, row.stop)
        visible = None
        if len(row.tokens) > 1 and not causal:
            index = torch.arange(keys.start, keys.stop)
            visible = index <= position[:, None]
            if window is not None:
                visible &= index > position[:, None] - window
        bias = None if self.bias is None else self.bias.of(position, keys)
        if bias is not None and len(row.tokens) == 1:
            bias = bias.permute(2, 0, 1, 3)  # one token of one slot is computed as of many slots
        return self._additive(visible, bias)

    def _additive(
        self, visible: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        if visible is None:
            return None if bias is None else bias.to(self.device, self.dtype)
        mask = torch.zeros(visible.shape, dtype=self.dtype) if bias is None else bias
        return mask.masked_fill(~visible, float("-inf")).to(self.device, self.dtype)


def _attends(rows: Sequence[Row], window: int | None, slack: int, masks: _Masks) -> list[Attend]:
    calls, first, index = [], 0, 0
    while index < len(rows):
        count = _neighbours(rows[index:], window, slack)
        if count > 1:
            batch = rows[index : index + count]
            calls.append(_single_tokens(batch, first, window, masks))
            first += count
        else:
            calls.append(_one_row(rows[index], first, window, masks))
            first += len(rows[index].tokens)
        index += count
    return calls


def _seen(row: Row, window: int | None) -> Range:
    """Keys that any token of this row sees."""
    return Range(0 if window is None else max(0, row.start + 1 - window), row.stop)


def _neighbours(rows: Sequence[Row], window: int | None, slack: int) -> int:
    """How many of the first rows are one call: single tokens, slots in a run, little padding."""
    seen = _seen(rows[0], window)
    useful = seen.size
    for count, row in enumerate(rows[1:], start=1):
        own = _seen(row, window)
        seen, useful = (
            Range(min(seen.start, own.start), max(seen.stop, own.stop)),
            useful + own.size,
        )
        padding = seen.size * (count + 1) - useful
        alike = len(rows[0].tokens) == len(row.tokens) == 1
        if not alike or row.slot != rows[0].slot + count or padding > slack * count:
            return count
    return len(rows)


def _single_tokens(rows: Sequence[Row], first: int, window: int | None, masks: _Masks) -> Attend:
    seen = [_seen(row, window) for row in rows]
    keys = Range(min(own.start for own in seen), max(own.stop for own in seen))
    return Attend(
        tokens=Range(first, first + len(rows)),
        slots=Range(rows[0].slot, rows[0].slot + len(rows)),
        keys=keys,
        mask=masks.single_tokens(rows, seen, keys),
        causal=False,
    )


def _one_row(row: Row, first: int, window: int | None, masks: _Masks) -> Attend:
    keys, count = _seen(row, window), len(row.tokens)
    plain = keys.start == 0 and (window is None or row.stop <= window)
    # A kernel that knows of causality takes no mask besides.
    causal = count > 1 and plain and row.start == 0 and masks.bias is None
    return Attend(
        tokens=Range(first, first + count),
        slots=Range(row.slot, row.slot + 1),
        keys=keys,
        mask=masks.one_row(row, keys, window, causal),
        causal=causal,
    )
