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


def blame_not_finite(sequences: Iterable[Sequence], located: bool) -> list[Sequence]:
    """The sequences to end, after a shard has reported NaN or infinity in the rows of `sequences`.

    located: the step had one sequence and chords of one layer, so the error names the layer, and
        the sequence ends. Otherwise each of them is computed again in a step of that kind.
    """
    suspects = list(sequences)
    for sequence in suspects:
        sequence.suspect = sequence.by_layer = True
    return suspects if located else []


def clear_blame(sequence: Sequence) -> None:
    """A step with it has succeeded."""
    sequence.suspect = sequence.by_layer = False
    sequence.failures = sequence.losses = 0
