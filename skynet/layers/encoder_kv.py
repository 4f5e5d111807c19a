"""Which tokens look at which keys: one call of the attention kernel, and those over what an encoder
has read, whose texts lie at places of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from skynet.planning.ranges import Range
from skynet.wire.step import Row


@dataclass(frozen=True)
class Attend:
    """One call of the attention kernel: which tokens look at which keys of which slots.

    Several slots: one token each. One slot: any number of tokens.
    """

    tokens: Range
    slots: Range
    keys: Range
    mask: torch.Tensor | None  # added to the scores; broadcasts to (slots, heads, tokens, keys)
    causal: bool  # the tokens are the keys, and see only what comes before


def encoder_kv_attends(
    rows: Sequence[Row], slack: int, dtype: torch.dtype, device: torch.device
) -> list[Attend]:
    """The calls for rows with a memory, every token of which sees all of it.

    slack: so many keys may be read in vain for each row, rather than make a call for it.
    """
    calls: list[Attend] = []
    runs = _runs([(row, row.encoder_kv) for row in rows if row.encoder_kv is not None], slack)
    first = 0
    for run in runs:
        count = sum(len(row.tokens) for row, _ in run)
        places = [place for _, (place, _) in run]
        lengths = [length for _, (_, length) in run]
        calls.append(
            Attend(
                tokens=Range(first, first + count),
                slots=Range(places[0], places[-1] + 1),
                keys=Range(0, max(lengths)),
                mask=_padding(lengths, dtype, device) if places[0] != places[-1] else None,
                causal=False,
            )
        )
        first += count
    return calls


Remembering = tuple[Row, tuple[int, int]]


def _runs(rows: Sequence[Remembering], slack: int) -> list[list[Remembering]]:
    """Rows of one call: of one memory, or single tokens of neighbours of about one length."""
    runs: list[list[Remembering]] = []
    for row, encoder_kv in rows:
        if runs and _joins(runs[-1], row, encoder_kv, slack):
            runs[-1].append((row, encoder_kv))
        else:
            runs.append([(row, encoder_kv)])
    return runs


def _joins(run: list[Remembering], row: Row, encoder_kv: tuple[int, int], slack: int) -> bool:
    places = {place for _, (place, _) in run}
    if len(places) == 1 and encoder_kv[0] in places:
        return True
    if len(places) < len(run) or encoder_kv[0] != run[-1][1][0] + 1:
        return False
    lengths = [length for _, (_, length) in run] + [encoder_kv[1]]
    padding = max(lengths) * len(lengths) - sum(lengths)
    alike = all(len(other.tokens) == 1 for other in [row, *(each for each, _ in run)])
    return alike and padding <= slack * len(run)


def _padding(
    lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """(rows, 1, 1, keys): what lies beyond a row's own memory is not seen."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    beyond = torch.arange(longest) >= torch.tensor(lengths)[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype).masked_fill(beyond, float("-inf"))
    return mask[:, None, None].to(device)
