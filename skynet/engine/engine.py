"""Continuous batching over one plan after another: requests in, steps out, tokens to the journal.

Sends steps through a `Carrier` and reports to a `Journal`; imports neither Redis nor Celery, so
that tests run it in one process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

from skynet.engine.blame import blame_failure, blame_loss, blame_not_finite, clear_blame
from skynet.engine.flight import Batch, InFlight, Replay, sequences_of
from skynet.engine.known_masks import KnownMasks
from skynet.engine.live_requests import Journal, LiveRequests, cancellation
from skynet.engine.scheduler import Scheduler
from skynet.engine.sequence import Sequence
from skynet.engine.step_timing import StepTiming
from skynet.errors import NotFinite, ShardFailed, ShardLost, SkynetError
from skynet.planning.plan import Plan
from skynet.request.record import Token
from skynet.wire.step import Part, Step

logger = logging.getLogger(__name__)

HURRY_S = 1.0


class Carrier(Protocol):
    """Takes steps to the shards of the first stage."""

    def send(self, step: Step) -> None: ...

    def give_up(self, step: Step) -> None:
        """The step's results are not needed any more."""

    def step_failed(self, error: SkynetError) -> None:
        """A step is lost: suspend the engine, and resume it with a new epoch."""

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """All sequences that ran before the engine was resumed are computed again."""


@dataclass(frozen=True)
class EngineOptions:
    """Limits of steps.

    max_batch_tokens: of a step; a text that cannot be cut may have more.
    step_timeout_s: after which a step is lost, however long its shards are expected to take.
    chord_share: of a step's time that chords may cost; see `SpanChooser`.
    prefix_cache: whether requests use the keys and values of others that began alike.
    """

    max_batch_tokens: int = 512
    step_timeout_s: float = 120
    chord_share: float = 0.05
    prefix_cache: bool = True


class Engine:
    """Runs requests over one plan after another.

    A change of plan ends no request: sequences keep their order, and their tokens are computed
    again by the new shards.

    ready: all shards of the plan are; no step is sent before.
    draining: no step is sent, to reach a step boundary.
    """

    def __init__(
        self,
        plan: Plan,
        carrier: Carrier,
        journal: Journal,
        options: EngineOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: seconds, by the clock of the requests' deadlines."""
        options = options or EngineOptions()
        self.plan = plan
        self.carrier = carrier
        self.journal = journal
        self.clock = clock
        self.scheduler = Scheduler(
            plan.num_slots, len(plan.stages), options.max_batch_tokens, options.prefix_cache
        )
        self.timing = StepTiming(plan, options.step_timeout_s, options.chord_share)
        self.requests = LiveRequests(self.scheduler, journal)
        self.sequences = self.requests.by_id
        self.in_flight: dict[int, InFlight] = {}
        self.known_masks = KnownMasks()
        self.ready = False
        self.draining = False
        self.num_steps = 0
        self.num_tokens = 0
        self.num_prompt_tokens = 0  # of requests that this engine started
        self.num_cached_tokens = 0  # of these, that were not computed
        self.layers_per_chord = 0
        self._next_step = 0
        self._given_up: list[Batch] = []  # in flight at the last `suspend`
        self._replay: Replay | None = None

    # -- plans ---------------------------------------------------------------------------------

    def drain(self) -> bool:
        """Send no further steps; True at the step boundary, when none is in flight."""
        self.draining = True
        return not self.in_flight

    def go_on(self) -> None:
        """Send steps again after `drain`."""
        if self.draining:
            self.draining = False
            self.pump()

    def hurry(self) -> None:
        """Messages may be lost: shorten the deadlines of the steps in flight."""
        soon = self.clock() + HURRY_S
        for flight in self.in_flight.values():
            flight.deadline = min(flight.deadline, soon)

    def suspend(self) -> None:
        """Give up the steps in flight; all slots are lost, all sequences stay."""
        self.ready = False
        for flight in self.in_flight.values():
            self.carrier.give_up(flight.step)
        if self.in_flight:
            self._given_up = [flight.batch for flight in self.in_flight.values()]
        self.in_flight.clear()
        self.known_masks.forget()
        self.scheduler.reset(len(self.plan.stages))

    def blame_loss(self) -> None:
        """Shards died during the steps that were given up; a request may be the cause."""
        batches, self._given_up = self._given_up, []
        for batch in batches:
            sequences = sequences_of(batch)
            live = filter(self.requests.has, sequences)
            for sequence in blame_loss(live, alone=len(sequences) == 1):
                message = (
                    f"request {sequence.id}: {sequence.losses} shards died, one after the other, "
                    "while they computed it alone"
                )
                self.requests.fail(sequence, ShardLost(message))

    def resume(self, plan: Plan) -> None:
        """Continue with a plan whose shards are ready and empty."""
        if self.ready:
            self.suspend()
        self.timing.follow(plan)
        self.plan, self._next_step = plan, 0
        self.scheduler.reset(len(plan.stages), plan.num_slots)
        self._replay = Replay(self.scheduler.running)
        self.ready, self.draining = True, False
        self.pump()

    # -- requests ------------------------------------------------------------------------------

    def accept(self, sequence: Sequence) -> None:
        """Queue a sequence, unless its request is queued or running already."""
        if sequence.id not in self.sequences:
            self.requests.add(sequence)
            self.pump()

    def cancel(self, request_id: str) -> None:
        """End a request at the end of its step; at once if it is in none."""
        self.requests.cancel(request_id)

    # -- steps ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send steps until every stage has one or no sequence is idle."""
        while self.ready and not self.draining and len(self.in_flight) < len(self.plan.stages):
            batch = self.scheduler.next_batch()
            if not batch:
                return
            self._send(batch)

    def _send(self, batch: Batch) -> None:
        now, sequences = self.clock(), sequences_of(batch)
        started = [sequence for sequence in sequences if not sequence.timings.started_at]
        for sequence in started:
            sequence.timings.started_at = now
        num_tokens = sum(len(row.tokens) for _, row in batch)
        by_layer = any(sequence.by_layer for sequence in sequences)
        self.layers_per_chord = 1 if by_layer else self.timing.spans.layers_per_chord(num_tokens)
        step = Step(
            self.plan.epoch,
            self._next_step,
            self.known_masks.without_known(row for _, row in batch),
            self.layers_per_chord,
            0 if sequences[0].needs_encoder else self.plan.encoder_layers,
        )
        self._next_step += 1
        deadline = now + self.timing.patience_s(step)
        self.in_flight[step.number] = InFlight(step, batch, now, deadline)
        logger.debug(
            "step %d: %d rows, %d tokens, %d layers per chord",
            step.number,
            len(batch),
            num_tokens,
            self.layers_per_chord,
        )
        try:
            self.carrier.send(step)
        except SkynetError as error:
            for sequence in started:
                sequence.timings.started_at = 0.0
            self.fail_step(step.epoch, step.number, error)
            return
        if started:
            self.num_prompt_tokens += sum(len(sequence.record.prompt) for sequence in started)
            self.num_cached_tokens += sum(sequence.cached_tokens for sequence in started)
            self.journal.started(started)

    def finish_step(
        self, epoch: int, number: int, parts: Items[Part], spent_s: float = 0.0
    ) -> None:
        """The shards' outputs of a step: sample, send the next step, then write the tokens.

        A step that is not in flight changes nothing: it is a duplicate, stale or given up.

        spent_s: compute of all spans but the last one.

        Raises:
            WireError: the parts are not of this step's shards and rows; the step stays in flight.
        """
        flight = self.in_flight.get(number) if epoch == self.plan.epoch else None
        if flight is None:
            logger.info("step %d of epoch %d is not in flight, dropped", number, epoch)
            return
        flight.check(parts, self.plan.num_shards)
        del self.in_flight[number]
        self.known_masks.note_finished(flight.step.rows)
        self.timing.learn(flight.step, parts, spent_s, self.clock() - flight.sent)
        tokens = self._take_results(flight, parts)
        finished, cancelled = self.requests.pop_ended(flight.sequences)
        self.pump()
        self.num_steps += 1
        self.num_tokens += len(tokens) + sum(len(s.output.pending) for s in finished)
        to_cancel, unwritten = self.journal.tokens(tokens) if tokens else (set(), set())
        for sequence in finished:
            if sequence.id not in unwritten:
                self.journal.finished(sequence)
        for sequence in cancelled:
            self.journal.failed(sequence, cancellation(sequence))
        for request_id in to_cancel:
            self.cancel(request_id)
        for request_id in unwritten & self.sequences.keys():
            # The record decides: the request is accepted again with the tokens written there.
            logger.warning("request %s: a token was not written, starting over", request_id)
            self.requests.drop(self.sequences[request_id])

    def _take_results(self, flight: InFlight, parts: Items[Part]) -> list[tuple[Sequence, Token]]:
        """Hand a step's results to its sequences; the tokens to be written."""
        tokens = []
        self.scheduler.note_end(flight.batch, finished=True)
        for sequence, results in flight.results(parts).items():
            sequence.in_flight = False
            encoder_kv = sequence.encoder_kv
            ran_encoder = encoder_kv is not None and encoder_kv.in_flight
            if encoder_kv is not None and ran_encoder:
                encoder_kv.filled, encoder_kv.in_flight = True, False
            if not self.requests.has(sequence):
                self.scheduler.release(sequence)  # failed during the step: its deadline passed
            elif not ran_encoder:
                if results[0].is_progress:
                    clear_blame(sequence)
                    self._note_replayed(sequence)
                taken = self.requests.take(sequence, results)
                tokens += [(sequence, token) for token in taken]
        return tokens

    def _note_replayed(self, sequence: Sequence) -> None:
        replay = self._replay
        if replay is not None and replay.note_progress(sequence.id, self.sequences):
            self._replay = None
            if replay.num_sequences:
                self.carrier.replayed(replay.num_sequences, replay.num_tokens, replay.seconds)

    def fail_step(self, epoch: int, number: int, error: SkynetError) -> None:
        """A step is lost: its requests continue when the engine is resumed.

        After a `ShardFailed` each of them runs alone, and ends with the error if shards keep
        failing with it. After a `NotFinite` the shards keep their slots, and requests go on.
        """
        flight = self.in_flight.get(number) if epoch == self.plan.epoch else None
        if flight is None:
            return
        logger.warning("step %d of epoch %d failed: %s", number, epoch, error)
        sequences = flight.sequences
        for sequence in sequences:
            sequence.in_flight = False
        if isinstance(error, NotFinite):
            self._repeat_step(flight, error)
            return
        if isinstance(error, ShardFailed):
            live = filter(self.requests.has, sequences)
            for sequence in blame_failure(live, alone=len(sequences) == 1):
                self.requests.fail(sequence, error)
        self.suspend()  # gives up this step with the others
        self.carrier.step_failed(error)

    def _repeat_step(self, flight: InFlight, error: NotFinite) -> None:
        """Compute the rows of a step again, those with NaN or infinity alone and by layer."""
        del self.in_flight[flight.step.number]
        self.carrier.give_up(flight.step)
        self.scheduler.note_end(flight.batch, finished=False)
        sequences = flight.sequences
        for sequence in sequences:
            if sequence.encoder_kv is not None:
                sequence.encoder_kv.in_flight = False
            if not self.requests.has(sequence):
                self.scheduler.release(sequence)  # failed during the step: its deadline passed
        named = flight.sequences_of_rows(error.rows)
        live = filter(self.requests.has, named)
        located = len(sequences) == 1 and flight.step.layers_per_chord == 1
        for sequence in blame_not_finite(live, located):
            self.requests.fail(sequence, error)
        self.pump()

    def tick(self) -> None:
        """Check the deadlines of steps and of requests."""
        now = self.clock()
        for number, flight in list(self.in_flight.items()):
            if now > flight.deadline and number in self.in_flight:
                self.timing.lost_in_a_row += 1
                message = f"step {number} was not done within {now - flight.sent:.1f} s"
                self.fail_step(self.plan.epoch, number, ShardLost(message))
        self.requests.expire(now)
        self.pump()
