"""Which tokens attend to which keys: a call of the attention kernel, and the calls over encoder KV,
which lies in slots numbered apart from the decoder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from skynet.kernels.prompts import Sight
from skynet.planning.ranges import Range
from skynet.wire.step import Row


@dataclass(frozen=True)
class Attend:
    """One call of the attention kernel: which tokens attend to which keys of which slots.

    Either several slots with one token each, or one slot with any number of tokens.

    sight: of one slot, what `mask` and `causal` say, for the kernel; None: it does not support it.
    """

    tokens: Range
    slots: Range
    keys: Range
    mask: torch.Tensor | None  # added to the scores; broadcasts to (slots, heads, tokens, keys)
    causal: bool  # the tokens are the keys, and see themselves and those before
    sight: Sight | None = None


def encoder_kv_attends(
    rows: Sequence[Row], slack: int, dtype: torch.dtype, device: torch.device
) -> list[Attend]:
    """The calls for rows with encoder KV, every token of which sees all of it.

    slack: padding keys that are cheaper per row than another call.
    """
    calls: list[Attend] = []
    runs = _runs([(row, row.encoder_kv) for row in rows if row.encoder_kv is not None], slack)
    first = 0
    for run in runs:
        count = sum(len(row.tokens) for row, _ in run)
        slots = [slot for _, (slot, _) in run]
        lengths = [length for _, (_, length) in run]
        calls.append(
            Attend(
                tokens=Range(first, first + count),
                slots=Range(slots[0], slots[-1] + 1),
                keys=Range(0, max(lengths)),
                mask=_padding(lengths, dtype, device) if slots[0] != slots[-1] else None,
                causal=False,
            )
        )
        first += count
    return calls


RowWithEncoderKV = tuple[Row, tuple[int, int]]  # (slot, length) of its encoder KV


def _runs(rows: Sequence[RowWithEncoderKV], slack: int) -> list[list[RowWithEncoderKV]]:
    """Rows of each call: rows of one slot, or single tokens of adjacent slots of similar length."""
    runs: list[list[RowWithEncoderKV]] = []
    for row, encoder_kv in rows:
        if runs and _joins(runs[-1], row, encoder_kv, slack):
            runs[-1].append((row, encoder_kv))
        else:
            runs.append([(row, encoder_kv)])
    return runs


def _joins(run: list[RowWithEncoderKV], row: Row, encoder_kv: tuple[int, int], slack: int) -> bool:
    slots = {slot for _, (slot, _) in run}
    if len(slots) == 1 and encoder_kv[0] in slots:
        return True
    if len(slots) < len(run) or encoder_kv[0] != run[-1][1][0] + 1:
        return False
    lengths = [length for _, (_, length) in run] + [encoder_kv[1]]
    padding = max(lengths) * len(lengths) - sum(lengths)
    single = all(len(other.tokens) == 1 for other in [row, *(each for each, _ in run)])
    return single and padding <= slack * len(run)


def _padding(
    lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """(rows, 1, 1, keys): hides the keys past the end of a row's encoder KV."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    beyond = torch.arange(longest) >= torch.tensor(lengths)[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype).masked_fill(beyond, float("-inf"))
    return mask[:, None, None].to(device)
