"""Steps in flight, their results by sequence, and the progress of a replay."""

from __future__ import annotations

import time
from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import islice

from skynet.engine.modes.mode import RowResult
from skynet.engine.sequence import Sequence
from skynet.engine.text_answers import ShardOutputs
from skynet.errors import WireError
from skynet.wire.step import Part, Row, Step

Batch = list[tuple[Sequence, Row]]


@dataclass
class InFlight:
    """A step that was sent and is not finished. Several of its rows may be of one beam search."""

    step: Step
    batch: Batch
    sent: float
    deadline: float

    @property
    def sequences(self) -> list[Sequence]:
        return sequences_of(self.batch)

    def sequences_of_rows(self, rows: Collection[int]) -> list[Sequence]:
        """The sequences of these rows, by their numbers; without any, all."""
        return sequences_of(
            [item for number, item in enumerate(self.batch) if number in rows or not rows]
        )

    def check(self, parts: Items[Part], num_shards: int) -> None:
        """Raise WireError unless `parts` are of all shards, with an output for each row."""
        tasks = [row.text_task for _, row in self.batch if row.text_task]
        vectors = sum(task.is_vector for task in tasks)
        candidates = sum(row.num_candidates for _, row in self.batch)
        if len(parts) != num_shards or len(parts[0].vectors) != vectors:
            raise WireError(f"step {self.step.number}: {len(parts)} parts of {num_shards} shards")
        for part in parts:
            if len(part.candidates) != candidates:
                raise WireError(
                    f"step {self.step.number}: {len(part.candidates)} candidates for {candidates}"
                )
            self._check_scores(part)

    def _check_scores(self, part: Part) -> None:
        entries = iter(part.candidates)
        for _, row in self.batch:
            answers = list(islice(entries, row.num_candidates))
            if row.scores is not None:
                scores, count = answers[0].scores, len(row.scores.targets)
                if scores is None or len(scores.totals) != count:
                    raise WireError(f"step {self.step.number}: no scores of {count} tokens")

    def results(self, parts: Items[Part]) -> dict[Sequence, list[RowResult]]:
        """The shards' outputs by sequence, in the order of the rows."""
        outputs = ShardOutputs(parts)
        results: dict[Sequence, list[RowResult]] = {sequence: [] for sequence in self.sequences}
        for sequence, row in self.batch:
            has_candidates = row.logits_request or row.scores
            candidates = outputs.next_candidates() if has_candidates else []
            text_output = outputs.next_text_output(row.text_task) if row.text_task else None
            results[sequence].append(RowResult(row, candidates, text_output))
        return results


def sequences_of(batch: Batch) -> list[Sequence]:
    """Each once."""
    return list(dict.fromkeys(sequence for sequence, _ in batch))


class Replay:
    """Sequences that are computed again after a change of plan, until each has a new result."""

    def __init__(self, sequences: Items[Sequence]) -> None:
        self.num_sequences = len(sequences)
        self.num_tokens = sum(sequence.mode.num_tokens for sequence in sequences)
        self._missing = {sequence.id for sequence in sequences}
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def note_progress(self, request_id: str, live_ids: Collection[str]) -> bool:
        """A sequence has a new result; True if no live one is still missing."""
        self._missing.discard(request_id)
        self._missing = {missing for missing in self._missing if missing in live_ids}
        return not self._missing
