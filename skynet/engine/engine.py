"""The orchestrator's heart: takes requests in, keeps the stages busy, gives answers out.

Knows sequences, batches and steps. Sends steps through a `Carrier` and tells what happened to a
`Journal`; knows neither Redis nor Celery, so that tests can run it in one process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Protocol

from skynet.engine.flight import Batch, Found, InFlight, Replay, sequences_of, sort_out
from skynet.engine.sampling import logprobs_of, sample
from skynet.engine.scheduler import Scheduler
from skynet.engine.sequence import Sequence
from skynet.engine.span import SpanChooser
from skynet.errors import (
    RequestCancelled,
    RequestTimeout,
    ShardFailed,
    ShardLost,
    SkynetError,
    StepFailed,
)
from skynet.planning.plan import Plan
from skynet.request.record import Token
from skynet.wire.step import Part, Step

logger = logging.getLogger(__name__)

# A step that takes so many times as long as it should, and then some, is lost.
PATIENCE, MIN_PATIENCE_S, FIRST_PATIENCE_S = 20, 3.0, 30.0
HURRY_S = 1.0
MAX_LOSSES = 6  # of shards that died, over one request alone and without a token in between
MAX_FAILURES = 3  # of shards, over one request alone, until it is the request's fault


class Carrier(Protocol):
    """Takes a step to the shards of the first stage."""

    def send(self, step: Step) -> None: ...

    def give_up(self, step: Step) -> None:
        """Nobody waits for this step any more."""

    def step_failed(self, error: SkynetError) -> None:
        """A step is lost: the engine should be suspended, and resumed with a new epoch."""

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """Everything that ran before the engine was resumed has its keys and values again."""


class Journal(Protocol):
    """Where answers are written down."""

    def started(self, sequences: Items[Sequence]) -> None:
        """Their first step is on its way."""

    def tokens(self, tokens: Items[tuple[Sequence, Token]]) -> tuple[set[str], set[str]]:
        """Append one token to each.

        Replies the ids that somebody asked to cancel, and those whose token was not written.
        """

    def finished(self, sequence: Sequence) -> None: ...

    def failed(self, sequence: Sequence, error: SkynetError) -> None: ...


class Engine:
    """Runs requests over one plan after another.

    Nothing is ever lost with a plan: sequences stay, in their order, and what the shards knew of
    them is replayed from their tokens.
    """

    def __init__(
        self,
        plan: Plan,
        carrier: Carrier,
        journal: Journal,
        *,
        max_batch_tokens: int = 512,
        step_timeout_s: float = 120,
        chord_share: float = 0.05,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: seconds, the one that requests' deadlines are by."""
        self.plan = plan
        self.carrier = carrier
        self.journal = journal
        self.step_timeout_s = step_timeout_s
        self.clock = clock
        self.scheduler = Scheduler(plan.num_slots, len(plan.stages), max_batch_tokens)
        self.chord_share = chord_share
        self.spans = SpanChooser(plan, chord_share)
        self.sequences: dict[str, Sequence] = {}
        self.in_flight: dict[int, InFlight] = {}
        self.ready = False  # all shards are; nothing is sent before
        self.draining = False  # no further steps, to come to a boundary
        self.num_steps = 0
        self.num_tokens = 0
        self.layers_per_chord = 0
        self._next_step = 0
        self._lost_in_a_row = 0
        self._given_up: list[Batch] = []
        self._replay: Replay | None = None

    # -- plans ---------------------------------------------------------------------------------

    def drain(self) -> bool:
        """Send no further steps; True at the boundary, when none is in flight."""
        self.draining = True
        return not self.in_flight

    def hurry(self) -> None:
        """Messages may have been lost: wait no longer than a moment for what is in flight."""
        soon = self.clock() + HURRY_S
        for flight in self.in_flight.values():
            flight.deadline = min(flight.deadline, soon)

    def go_on(self) -> None:
        """No boundary is needed any more."""
        if self.draining:
            self.draining = False
            self.pump()

    def suspend(self) -> None:
        """Give up what is in flight; sequences stay, and shards are taken to know nothing."""
        self.ready = False
        for flight in self.in_flight.values():
            self.carrier.give_up(flight.step)
        if self.in_flight:
            self._given_up = [flight.batch for flight in self.in_flight.values()]
        self.in_flight.clear()
        self.scheduler.reset(len(self.plan.stages))

    def blame_loss(self) -> None:
        """A shard has died with these steps: maybe one of their requests kills whoever takes it.

        They are run alone, and one that outlives no shard again and again ends with an error.
        """
        batches, self._given_up = self._given_up, []
        for batch in batches:
            sequences = sequences_of(batch)
            for sequence in filter(self._has, sequences):
                sequence.suspect = True
                sequence.losses += len(sequences) == 1
                if sequence.losses >= MAX_LOSSES:
                    self._fail(
                        sequence,
                        ShardLost(
                            f"request {sequence.id}: {sequence.losses} shards died, one after the "
                            "other, while they computed it alone"
                        ),
                    )

    def resume(self, plan: Plan) -> None:
        """Go on with a new plan, whose shards are ready and empty."""
        if self.ready:
            self.suspend()
        if (plan.stages, plan.chord_span) != (self.plan.stages, self.plan.chord_span):
            self.spans = SpanChooser(plan, self.chord_share, self.spans)
        self.plan, self._next_step = plan, 0
        self.scheduler.reset(len(plan.stages), plan.num_slots)
        running = self.scheduler.running
        self._replay = Replay(
            {sequence.id for sequence in running},
            len(running),
            sum(sequence.num_tokens for sequence in running),
            time.monotonic(),
        )
        self.ready, self.draining = True, False
        self.pump()

    # -- requests ------------------------------------------------------------------------------

    def accept(self, sequence: Sequence) -> None:
        """Queue a sequence; one that is known already is not taken twice."""
        if sequence.id in self.sequences:
            return
        self.sequences[sequence.id] = sequence
        self.scheduler.add(sequence)
        self.pump()

    def cancel(self, request_id: str) -> None:
        """End a request at the next step; at once if it is in none."""
        sequence = self.sequences.get(request_id)
        if sequence is None:
            return
        sequence.cancelled = True
        if not sequence.in_flight:
            self._fail(sequence, RequestCancelled(f"request {request_id} was cancelled"))

    def pump(self) -> None:
        """Send steps until every stage has one or there is nothing to do."""
        while self.ready and not self.draining and len(self.in_flight) < len(self.plan.stages):
            batch = self.scheduler.next_batch()
            if not batch:
                return
            self._send(batch)

    def _send(self, batch: Batch) -> None:
        now, sequences = self.clock(), sequences_of(batch)
        started = [sequence for sequence in sequences if not sequence.started_at]
        for sequence in started:
            sequence.started_at = now
        num_tokens = sum(len(row.tokens) for _, row in batch)
        self.layers_per_chord = self.spans.layers_per_chord(num_tokens)
        step = Step(
            self.plan.epoch,
            self._next_step,
            tuple(row for _, row in batch),
            self.layers_per_chord,
            0 if sequences[0].to_read else self.plan.encoder_layers,
        )
        self._next_step += 1
        self.in_flight[step.number] = InFlight(step, batch, now, now + self._patience_s(step))
        logger.debug(
            "step %d: %d rows, %d tokens, %d layers a chord",
            step.number,
            len(batch),
            num_tokens,
            self.layers_per_chord,
        )
        try:
            self.carrier.send(step)
        except SkynetError as error:
            for sequence in started:
                sequence.started_at = 0.0
            self.fail_step(step.epoch, step.number, error)
            return
        if started:
            self.journal.started(started)

    def _patience_s(self, step: Step) -> float:
        """How long to wait for a step: each loss in a row doubles it, up to the time-out."""
        chords = self._num_chords(step)
        num_layers = self.plan.num_layers - step.start
        expected_s = self.spans.expected_s(step.num_tokens, chords, num_layers)
        patience_s = FIRST_PATIENCE_S
        if expected_s is not None:
            patience_s = MIN_PATIENCE_S + PATIENCE * expected_s * len(self.plan.stages)
        return min(self.step_timeout_s, patience_s * 2**self._lost_in_a_row)

    def _num_chords(self, step: Step) -> int:
        return self.plan.chords_of(step.start, step.layers_per_chord)

    # -- steps ---------------------------------------------------------------------------------

    def finish_step(
        self, epoch: int, number: int, parts: Items[Part], spent_s: float = 0.0
    ) -> None:
        """The shards' candidates of a step: sample, send the next step, then write tokens down.

        spent_s: what the spans before the last one computed.

        A step that is not in flight changes nothing: it is a duplicate, stale or given up.
        """
        flight = self.in_flight.pop(number, None) if epoch == self.plan.epoch else None
        if flight is None:
            logger.info("step %d of epoch %d is not in flight, dropped", number, epoch)
            return
        self._learn(flight, parts, spent_s)
        self._lost_in_a_row = 0
        emitted = self._take_in(flight, parts)
        running = [sequence for sequence in flight.sequences if self._has(sequence)]
        over = [sequence for sequence in running if sequence.finish_reason]
        cancelled = [s for s in running if s.cancelled and not s.finish_reason]
        for sequence in [*over, *cancelled]:
            self._drop(sequence)
        self.pump()
        self.num_steps += 1
        self.num_tokens += len(emitted) + sum(len(sequence.pending) for sequence in over)
        to_cancel, unwritten = self.journal.tokens(emitted) if emitted else (set(), set())
        for sequence in over:
            if sequence.id not in unwritten:
                self.journal.finished(sequence)
        for sequence in cancelled:
            self.journal.failed(sequence, RequestCancelled(f"request {sequence.id} was cancelled"))
        for request_id in to_cancel:
            self.cancel(request_id)
        for request_id in unwritten & self.sequences.keys():
            # The record is the truth: to be taken up again from what it holds.
            logger.warning("request %s: a token was not written, starting over", request_id)
            self._drop(self.sequences[request_id])

    def _take_in(self, flight: InFlight, parts: Items[Part]) -> list[tuple[Sequence, Token]]:
        """What a step brought, to each of its sequences: the tokens that are to be written."""
        emitted = []
        for sequence, own in sort_out(flight, parts).items():
            sequence.in_flight = False
            is_source = sequence.encoder_kv is not None and sequence.encoder_kv.in_flight
            if is_source and sequence.encoder_kv is not None:
                sequence.encoder_kv.filled, sequence.encoder_kv.in_flight = True, False
            if not self._has(sequence):
                self.scheduler.release(sequence)  # failed meanwhile: its deadline passed
            elif not is_source:
                emitted += self._choose(sequence, own)
        return emitted

    def _choose(self, sequence: Sequence, found: list[Found]) -> list[tuple[Sequence, Token]]:
        """A sequence's next token, or its beams, or what was read of it."""
        try:
            if sequence.beams is not None:
                if sequence.choose_beams([each.row for each in found], [f.offers for f in found]):
                    self._note_progress(sequence)
                return []
            return self._sample(sequence, found[0])
        except StepFailed as error:
            self._fail(sequence, error)
        except (ValueError, IndexError, FloatingPointError) as error:
            self._fail(sequence, StepFailed(f"no token can be sampled: {error}"))
        return []

    def _sample(self, sequence: Sequence, found: Found) -> list[tuple[Sequence, Token]]:
        sequence.computed = found.row.stop
        if found.row.logits_request is None and found.reading is None:
            return []
        self._note_progress(sequence)
        if found.reading is not None:
            sequence.take_text_answer(found.reading)
            return []
        options = sequence.record.options
        token = sample(found.offers, options, len(sequence.generated), sequence.rules)
        logprobs = None
        if options.logprobs is not None:
            logprobs = logprobs_of(found.offers, token, options.logprobs)
        return [(sequence, sequence.append(token, logprobs))]

    def _note_progress(self, sequence: Sequence) -> None:
        sequence.suspect, sequence.failures, sequence.losses = False, 0, 0
        self._note_replayed(sequence.id)

    def _learn(self, flight: InFlight, parts: Items[Part], spent_s: float) -> None:
        chords = self._num_chords(flight.step)
        busy_s = spent_s + max(part.busy_s for part in parts)
        wall_s = self.clock() - flight.sent
        num_layers = self.plan.num_layers - flight.step.start
        self.spans.learn(flight.step.num_tokens, chords, busy_s, wall_s, num_layers)
        logger.debug(
            "step %d done in %.2f ms; last span: %s",
            flight.step.number,
            wall_s * 1000,
            ", ".join(
                f"compute {part.compute_s * 1000:.2f} + wait {part.wait_s * 1000:.2f} ms"
                for part in parts
            ),
        )

    def _note_replayed(self, request_id: str) -> None:
        replay = self._replay
        if replay is None:
            return
        replay.ids.discard(request_id)
        replay.ids &= self.sequences.keys()
        if not replay.ids:
            self._replay = None
            if replay.num_sequences:
                seconds = time.monotonic() - replay.started
                self.carrier.replayed(replay.num_sequences, replay.num_tokens, seconds)

    def fail_step(self, epoch: int, number: int, error: SkynetError) -> None:
        """A step is lost: its requests go on when the engine is resumed.

        If shards raised while they computed it, the request that makes them is found by running
        each alone, and ends with the error if it goes on doing so.
        """
        flight = self.in_flight.get(number) if epoch == self.plan.epoch else None
        if flight is None:
            return
        logger.warning("step %d of epoch %d failed: %s", number, epoch, error)
        for sequence in flight.sequences:
            sequence.in_flight = False
            if isinstance(error, ShardFailed) and self._has(sequence):
                sequence.suspect = True
                sequence.failures += len(flight.sequences) == 1
                if sequence.failures >= MAX_FAILURES:
                    self._fail(sequence, error)
        self.suspend()  # gives this step up with the others
        self.carrier.step_failed(error)

    def tick(self) -> None:
        """Deadlines, of steps and of requests."""
        now = self.clock()
        for number, flight in list(self.in_flight.items()):
            if now > flight.deadline and number in self.in_flight:
                self._lost_in_a_row += 1
                waited_s = now - flight.sent
                self.fail_step(
                    self.plan.epoch,
                    number,
                    ShardLost(f"step {number} was not done within {waited_s:.1f} s"),
                )
        for sequence in list(self.sequences.values()):
            if now > sequence.record.deadline:
                self._fail(sequence, RequestTimeout(self._timeout_message(sequence)))
        self.pump()

    def _timeout_message(self, sequence: Sequence) -> str:
        allowed = sequence.record.deadline - sequence.record.created
        state = "it was running" if sequence.slot is not None else "it was still waiting"
        return (
            f"request {sequence.id} was not answered within its {allowed:g} s: {state}, "
            f"{sequence.num_done} tokens done"
        )

    def _has(self, sequence: Sequence) -> bool:
        """Is it still this one, and not another that took the request up again?"""
        return self.sequences.get(sequence.id) is sequence

    def _fail(self, sequence: Sequence, error: SkynetError) -> None:
        self._drop(sequence)
        self.journal.failed(sequence, error)

    def _drop(self, sequence: Sequence) -> None:
        del self.sequences[sequence.id]
        self.scheduler.remove(sequence)
