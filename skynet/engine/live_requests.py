"""The requests of an engine: queued or running, each ended once."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Protocol

from skynet.engine.modes.mode import RowResult
from skynet.engine.scheduler import Scheduler
from skynet.engine.sequence import Sequence
from skynet.errors import BadRequest, RequestCancelled, RequestTimeout, SkynetError, StepFailed
from skynet.request.option_table import decimal
from skynet.request.record import Token


class Journal(Protocol):
    """Where answers are written."""

    def started(self, sequences: Items[Sequence]) -> None:
        """Their first step was sent."""

    def tokens(self, tokens: Items[tuple[Sequence, Token]]) -> tuple[set[str], set[str]]:
        """Append one token to each.

        Returns the ids of requests to be cancelled, and of those whose token was not written.
        """

    def finished(self, sequence: Sequence) -> None: ...

    def failed(self, sequence: Sequence, error: SkynetError) -> None: ...


class LiveRequests:
    """Sequences by request id, with their places in the scheduler."""

    def __init__(self, scheduler: Scheduler, journal: Journal) -> None:
        self.scheduler = scheduler
        self.journal = journal
        self.by_id: dict[str, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        self.by_id[sequence.id] = sequence
        self.scheduler.add(sequence)

    def has(self, sequence: Sequence) -> bool:
        """False if it has ended, even if its request was accepted again."""
        return self.by_id.get(sequence.id) is sequence

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence without a word to the journal."""
        del self.by_id[sequence.id]
        self.scheduler.remove(sequence)

    def fail(self, sequence: Sequence, error: SkynetError) -> None:
        self.drop(sequence)
        self.journal.failed(sequence, error)

    def cancel(self, request_id: str) -> None:
        """End a request at the end of its step; at once if it is in none."""
        sequence = self.by_id.get(request_id)
        if sequence is None:
            return
        sequence.cancelled = True
        if not sequence.in_flight:
            self.fail(sequence, cancellation(sequence))

    def pop_ended(self, sequences: Iterable[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
        """Drop those that are finished and those that were cancelled, and return both."""
        live = [sequence for sequence in sequences if self.has(sequence)]
        finished = [sequence for sequence in live if sequence.finish_reason]
        cancelled = [s for s in live if s.cancelled and not s.finish_reason]
        for sequence in [*finished, *cancelled]:
            self.drop(sequence)
        return finished, cancelled

    def take(self, sequence: Sequence, results: list[RowResult]) -> list[Token]:
        """Use the results of a step; a sequence that cannot is failed."""
        try:
            return sequence.take(results)
        except (StepFailed, BadRequest) as error:
            self.fail(sequence, error)
        except (ValueError, IndexError, FloatingPointError) as error:
            self.fail(sequence, StepFailed(f"no token can be sampled: {error}"))
        return []

    def expire(self, now: float) -> None:
        """Fail requests whose deadline has passed."""
        for sequence in list(self.by_id.values()):
            if now > sequence.record.deadline:
                self.fail(sequence, _timeout(sequence))


def cancellation(sequence: Sequence) -> RequestCancelled:
    return RequestCancelled(f"request {sequence.id} was cancelled")


def _timeout(sequence: Sequence) -> RequestTimeout:
    allowed_s = decimal(sequence.record.timeout_s)
    state = "it was running" if sequence.slot is not None else "it was still waiting"
    return RequestTimeout(
        f"request {sequence.id} was not answered within its {allowed_s} s: {state}, "
        f"{sequence.mode.num_done} tokens done"
    )
