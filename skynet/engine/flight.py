"""A step on its way, what it brings back, and what of it has to be computed again."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from skynet.engine.sequence import Sequence
from skynet.engine.text_answers import ShardLogits, Vector
from skynet.wire.step import Candidates, Part, Row, Step

Batch = list[tuple[Sequence, Row]]


@dataclass
class InFlight:
    """A step on its way. A sequence that searches with beams has several rows."""

    step: Step
    batch: Batch
    sent: float
    deadline: float

    @property
    def sequences(self) -> list[Sequence]:
        return sequences_of(self.batch)


def sequences_of(batch: Batch) -> list[Sequence]:
    """Each once."""
    return list(dict.fromkeys(sequence for sequence, _ in batch))


@dataclass(frozen=True)
class Found:
    """What the shards returned for one row: offers of each for its next token, or a reading."""

    row: Row
    offers: list[Candidates]
    reading: Vector | list[list[Candidates]] | None


@dataclass
class Replay:
    """What has to be computed again after a change of plan."""

    ids: set[str]
    num_sequences: int
    num_tokens: int
    started: float


def sort_out(flight: InFlight, parts: Items[Part]) -> dict[Sequence, list[Found]]:
    """What a step brought, by sequence, in the order of their rows."""
    returned = ShardLogits(parts)
    found: dict[Sequence, list[Found]] = {sequence: [] for sequence in flight.sequences}
    for sequence, row in flight.batch:
        offers = returned.token() if row.logits_request else []
        reading = returned.reading(row.text_task) if row.text_task else None
        found[sequence].append(Found(row, offers, reading))
    return found
