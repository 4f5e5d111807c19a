"""Which request makes shards fail or die: suspects run alone until a limit."""

from __future__ import annotations

from collections.abc import Iterable

from skynet.engine.sequence import Sequence

MAX_FAILURES = 3  # consecutive failures of shards with one request alone
MAX_LOSSES = 6  # consecutive deaths of shards with one request alone


def blame_failure(sequences: Iterable[Sequence], alone: bool) -> list[Sequence]:
    """A shard raised in a step with these; those that reached the limit.

    alone: whether the step had one sequence.
    """
    guilty = []
    for sequence in sequences:
        sequence.suspect = True
        sequence.failures += alone
        if sequence.failures >= MAX_FAILURES:
            guilty.append(sequence)
    return guilty


def blame_loss(sequences: Iterable[Sequence], alone: bool) -> list[Sequence]:
    """A shard died while a step with these was in flight; those that reached the limit.

    alone: whether the step had one sequence.
    """
    guilty = []
    for sequence in sequences:
        sequence.suspect = True
        sequence.losses += alone
        if sequence.losses >= MAX_LOSSES:
            guilty.append(sequence)
    return guilty


def blame_not_finite(sequences: Iterable[Sequence], found: bool) -> list[Sequence]:
    """A shard found NaN or infinity in the rows of these; those that are guilty.

    found: whether the step had one sequence and chords of one layer, so that the error names the
        layer. Others are computed again in such a step: one confirmation, and no more.
    """
    guilty = []
    for sequence in sequences:
        if found:
            guilty.append(sequence)
        sequence.suspect = sequence.by_layer = True
    return guilty


def clear_blame(sequence: Sequence) -> None:
    """A step with it has succeeded."""
    sequence.suspect = sequence.by_layer = False
    sequence.failures = sequence.losses = 0
