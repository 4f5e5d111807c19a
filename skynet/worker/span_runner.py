"""Runs the spans of one shard worker: checks a message, computes its layers, reports its part.

Runs in Celery's thread; the place comes from the plan follower's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis
from celery.exceptions import Ignore

from skynet.chords.messenger import next_span
from skynet.errors import NotFinite, PeerLost, ShardFailed, ShardUnready, WireError
from skynet.planning.ranges import Range
from skynet.settings import settings
from skynet.store.plans import Plans
from skynet.wire import keys
from skynet.wire.frame import FLOAT32, Frame
from skynet.wire.keys import Address
from skynet.wire.step import Part, SpanMessage, Step
from skynet.worker.plan_follower import Place, PlanFollower

if TYPE_CHECKING:
    import torch

    from skynet.chords.app import SkynetCelery

logger = logging.getLogger(__name__)


class SpanRunner:
    """Computes this shard's parts of steps.

    stop_consuming: called when a message of this process's queue is for another worker.
    """

    def __init__(
        self,
        app: SkynetCelery,
        client: redis.Redis,
        plan_follower: PlanFollower,
        stop_consuming: Callable[[], None],
    ) -> None:
        self.app = app
        self.client = client
        self.plan_follower = plan_follower
        self.stop_consuming = stop_consuming

    def run(self, request: Any, span: SpanMessage) -> Part:
        """This shard's part of a span.

        request: Celery's, with the chord's headers.

        Raises:
            Ignore: the message is stale, a duplicate or for another worker; nothing changes.
            NotFinite: NaN or infinity among the numbers of this shard, or of a peer it waited for.
            StepFailed: this shard, or a peer it waited for, failed.
            WireError: the message, its step or its hidden states are malformed.
        """
        span.check()
        place = self.plan_follower.place
        try:
            if place is None or place.plan.epoch != span.epoch:
                self._refuse(request, place, span)
                raise Ignore(f"step {span.step} is of epoch {span.epoch}")
            _check_plan(place, span)
            place.guard.check(span.step, span.start)
            step, hidden = self._inputs(place, span)
            place.guard.admit(step, span.start)
        except Ignore as reason:
            logger.debug("%s, dropped", reason)
            raise
        except redis.RedisError as error:
            queue = request.delivery_info["routing_key"]
            raise ShardUnready(f"{queue} lost its connection to Redis: {error}") from error
        part = self._compute(place, step, Range(span.start, span.stop), hidden)
        place.guard.done(span.step, span.stop)
        return part

    def advance(self, parts: list[bytes], at: SpanMessage, spent_s: float) -> None:
        """Sum the parts of a span, in shard order, and send the chord that starts at `at.start`.

        Raises:
            WireError: the message or a part is malformed.
        """
        at.check()
        place, layer = self.plan_follower.place, at.start
        if place is None or place.plan.epoch != at.epoch or at.step not in place.guard.steps:
            logger.info("step %d of epoch %d is stale, not advanced", at.step, at.epoch)
            return
        _check_plan(place, at)
        step, rows = place.guard.steps[at.step]
        decoded = [Part.decode(data) for data in parts]
        if len(decoded) != place.plan.num_shards or not 0 < layer < place.plan.num_layers:
            raise WireError(f"step {at.step}: {len(decoded)} parts before layer {layer}")
        total: Any = None
        for part in decoded:
            if part.hidden is None:
                raise ShardFailed(f"step {at.step}: a part before layer {layer} is empty")
            if part.hidden.shape != (step.num_tokens, decoded[0].hidden_size):
                raise WireError(f"step {at.step}: a part of shape {part.hidden.shape}")
            total = part.hidden.copy() if total is None else total + part.hidden
        span = next_span(place.plan, layer, step.layers_per_chord)
        hidden = Frame.of(total).encode()
        self.app.messenger.emit_chord(
            place.plan,
            SpanMessage(at.epoch, at.step, span.start, span.stop, rows, hidden),
            spent_s=spent_s + max(part.busy_s for part in decoded),
        )

    def _refuse(self, request: Any, place: Place | None, span: SpanMessage) -> None:
        """A message of another epoch: drop it if stale, give it back if for another worker.

        A process that was suspended may take a message for its successor when it wakes.
        """
        epoch, member = span.epoch, self.plan_follower.member
        last_epoch = max(self.plan_follower.epoch, place.plan.epoch if place else 0)
        try:
            plan = Plans(self.client).current()
        except WireError as error:
            logger.error("step %d of epoch %d is dropped: %s", span.step, epoch, error)
            return
        if epoch < last_epoch or plan is None or plan.epoch != epoch:
            logger.debug("step %d of epoch %d is stale, dropped", span.step, epoch)
            return
        placed = plan.placed().get(member.id)
        queue = request.delivery_info["routing_key"]
        if placed is not None and str(Address(*placed)) == queue:
            raise ShardUnready(
                f"{queue} has no weights of plan {epoch}: it is {member.state} "
                f"{member.problem}".rstrip()
            )
        logger.info("step %d is for another worker of %s: given back", span.step, queue)
        self.app.messenger.give_back(
            keys.RUN_SPAN_TASK,
            span,
            queue,
            group_id=request.group,
            group_index=request.group_index,
            chord=request.chord,
        )
        self.stop_consuming()

    def _inputs(self, place: Place, span: SpanMessage) -> tuple[Step, bytes | None]:
        """The step and the hidden states before it; those not in the message in one round trip."""
        known = place.guard.steps.get(span.step)
        if known is None and span.rows is not None:
            known = _remember(place, span, span.rows)
        rows_key = keys.step_key(span.epoch, span.step)
        hidden_key = keys.hidden_key(keys.chord_id(span.epoch, span.step, span.start))
        redis_keys = [rows_key] if known is None else []
        if span.hidden is None and span.start > (known[0].start if known else 0):
            redis_keys.append(hidden_key)
        values: list[bytes | None] = self.client.mget(redis_keys) if redis_keys else []  # type: ignore[assignment]
        fetched = dict(zip(redis_keys, values, strict=True))
        if known is None:
            known = _remember(place, span, fetched[rows_key], rows_key)
        if span.start == known[0].start:
            return known[0], None
        hidden = span.hidden or fetched.get(hidden_key)
        if hidden is None:
            raise ShardUnready(_missing(place, hidden_key))
        return known[0], hidden

    def _compute(self, place: Place, step: Step, span: Range, hidden: bytes | None) -> Part:
        from skynet.worker.all_reduce import AllReduce

        self._set_threads()
        exchange = place.exchange
        started, exchange.waited_s = time.perf_counter(), 0.0
        key = keys.step_key(step.epoch, step.number)
        exchange.still_wanted = lambda: (
            self.plan_follower.place is place and bool(self.client.exists(key))
        )
        first = place.model.first_sum(span.start)
        all_reduce = AllReduce(exchange, step.epoch, step.number, first, settings().exchange_dtype)
        try:
            before = None if hidden is None else _hidden_states(hidden, step)
            partial, candidates, vectors = place.model.run(step, span, before, all_reduce)
        except Exception as error:
            exchange.abort(step.epoch, step.number, all_reduce.position, error)
            if isinstance(error, PeerLost | NotFinite | ShardUnready):
                raise
            member = self.plan_follower.member
            raise ShardFailed(
                f"{place.address} (pid {member.pid} on {member.host}) failed at layers "
                f"[{span.start}, {span.stop}) of step {step.number}: {type(error).__name__}: "
                f"{error}"
            ) from error
        waited = exchange.waited_s
        total = None if partial is None else partial.cpu().numpy()
        computed = time.perf_counter() - started - waited
        member = self.plan_follower.member
        member.steps += 1
        member.compute_s += computed
        member.exchange_s += waited
        return Part(total, candidates, computed, waited, vectors)

    def _set_threads(self) -> None:
        """Take over the thread count that the plan follower has chosen."""
        if self.plan_follower.threads_changed:
            import torch

            torch.set_num_threads(self.plan_follower.threads_changed)
            self.plan_follower.threads_changed = 0


def _hidden_states(payload: bytes, step: Step) -> torch.Tensor:
    """Hidden states (tokens, hidden) float32 of a step.

    Raises:
        WireError: they are not of this step's tokens.
    """
    import torch

    frame = Frame.decode(payload)
    if frame.kind != FLOAT32 or frame.rows != step.num_tokens:
        raise WireError(f"hidden states of {frame}, expected {step.num_tokens} rows of float32")
    return torch.from_numpy(frame.copy())


def _check_plan(place: Place, span: SpanMessage) -> None:
    """Raise Ignore for a message of another cluster, whose plan has the same epoch."""
    if span.plan_id not in ("", place.plan.id):  # "": of an earlier version
        raise Ignore(
            f"step {span.step} is of plan {span.plan_id!r:.40}, not of {place.plan.id!r}: of "
            "another cluster"
        )


def _remember(
    place: Place, span: SpanMessage, rows: bytes | None, key: str = ""
) -> tuple[Step, bytes]:
    """Keep a step for its later spans; `key` is where its rows were looked for."""
    if rows is None:
        raise ShardUnready(_missing(place, key))
    known = (Step.decode(rows), rows)
    place.guard.check_step(known[0], place.plan, span.step)
    place.guard.remember(*known)
    return known


def _missing(place: Place, key: str) -> str:
    return (
        f"{place.address}: {key} is not in Redis: the step was given up, or Redis restarted "
        "without its data"
    )
