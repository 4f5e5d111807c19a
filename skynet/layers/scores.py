"""Scores of a prompt's own tokens by one vocabulary shard: the head over many positions.

Logits are made for a block of positions at a time, so that memory does not grow with the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from skynet.layers.candidates import likeliest, no_candidates
from skynet.planning.ranges import Range
from skynet.wire.scores import Scores, ScoresRequest
from skynet.wire.step import Candidates, Row

BLOCK_NUMBERS = 2**22  # logits of a block: 16 MiB

LogitsOf = Callable[[range], torch.Tensor]


def with_scores(
    rows: Sequence[Row], picked: Sequence[Candidates], vocab: Range, logits_of: LogitsOf
) -> list[Candidates]:
    """The candidates of all rows; those of a row that asks for scores have them.

    picked: of the rows that ask for candidates.
    vocab: the shard's tokens.
    logits_of: logits (tokens, vocabulary of this shard) float32, of tokens of the step.
    """
    entries, remaining, start = list[Candidates](), iter(picked), 0
    for row in rows:
        chosen = list(islice(remaining, row.num_choices))
        if row.scores is not None:
            scores = _scores(row.scores, start, vocab, logits_of)
            chosen = [replace(chosen[0] if chosen else no_candidates(), scores=scores)]
        entries += chosen
        start += len(row.tokens)
    return entries


def _scores(request: ScoresRequest, start: int, vocab: Range, logits_of: LogitsOf) -> Scores:
    """The scores of a row whose first token is the step's token `start`."""
    count, top = len(request.targets), min(request.top, vocab.size)
    totals = np.full(count, -np.inf)
    targets = np.full(count, -np.inf, np.float32)
    ids, best = np.empty((count, top), np.int32), np.empty((count, top), np.float32)
    tokens = torch.tensor(request.targets) - vocab.start
    for block in _blocks(count, vocab.size):
        first = start + request.first
        logits = logits_of(range(first + block.start, first + block.stop)).cpu()
        here = slice(block.start, block.stop)
        columns = tokens[here].clamp(0, vocab.size - 1)
        own = (columns == tokens[here]).numpy()
        chosen = logits.gather(1, columns[:, None])[:, 0].numpy()
        targets[here] = np.where(own, chosen, targets[here])
        if top:
            found, best[here] = likeliest(logits, top)
            ids[here] = found + vocab.start
        totals[here] = _totals(logits)
    return Scores(totals, targets, ids, best)


def _blocks(count: int, width: int) -> Iterator[range]:
    """Ranges of positions; none for a shard without vocabulary."""
    size = max(1, BLOCK_NUMBERS // max(1, width))
    for start in range(0, count if width else 0, size):
        yield range(start, min(start + size, count))


def _totals(logits: torch.Tensor) -> np.ndarray:
    """The log of the sum of exp(logit) of each line, summed in float64."""
    peaks = logits.amax(dim=1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    sums = (logits - peaks).exp_().sum(dim=1, dtype=torch.float64)
    return np.asarray(sums.log() + peaks[:, 0].double())
