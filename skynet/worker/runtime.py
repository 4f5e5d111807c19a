"""One shard worker: its lease, its place, and the spans it runs.

Three threads. Celery's runs the spans and decides what is consumed; the keeper's follows the plans
and loads; the lease's says that the process lives.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import redis
from celery.exceptions import Ignore

from skynet.chords.messenger import next_span
from skynet.errors import PeerLost, ShardFailed, ShardUnready
from skynet.planning.ranges import Range
from skynet.settings import settings
from skynet.store.connection import connect
from skynet.store.leader import leader_of
from skynet.store.lease import Lease
from skynet.store.members import FAILED, LOADING, READY, Member
from skynet.store.plans import Plans
from skynet.wire import keys
from skynet.wire.keys import Address
from skynet.wire.step import Part, Step
from skynet.worker.memory import free_memory
from skynet.worker.plan_follower import Place, PlanFollower

if TYPE_CHECKING:
    from skynet.chords.app import SkynetCelery

logger = logging.getLogger(__name__)

SETTLE_S = 0.1
# A pop of a queue that this worker has left may still be under way in Redis and take a message.
LINGER_S = keys.POP_S + 0.3
LEAVE_S = 25.0  # below the 30 s that containers are given to stop


class ShardRuntime:
    """A shard worker; `pinned` is the only address it takes, or None."""

    def __init__(self, app: SkynetCelery, pinned: Address | None, node: str) -> None:
        self.app = app
        self.member = Member(
            uuid.uuid4().hex[:12],
            node,
            "",
            socket.gethostname(),
            os.getpid(),
            pinned=str(pinned or ""),
            device=settings().device,
            cores=os.cpu_count() or 1,
            asked_threads=settings().threads or 0,
        )
        self.lease = Lease(self.member, settings().lease_s, free_bytes=free_memory)
        self.plan_follower = PlanFollower(self.lease, self._consumes)
        self.left = False  # nobody needs this process any more
        self._client = connect()
        self._consumer: Any = None
        self._queue = ""  # what is consumed
        self._changed = 0.0  # when a queue was last left
        self._leaving_since = 0.0
        self._settled = 0.0  # when Celery's thread last moved
        self._place: Place | None = None  # the last one seen by Celery's thread

    # -- lifecycle -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to hold the lease and to look for a place."""
        self.lease.start()
        self.plan_follower.start()

    def ready(self, consumer: Any) -> None:
        """Celery runs from here on; what it consumes follows the worker's place."""
        self._consumer = consumer
        consumer.timer.call_repeatedly(SETTLE_S, self.settle)
        wanted = self.member.pinned or "any place"
        logger.info("member %s is here for %s", self.member.id, wanted)

    def leave(self) -> None:
        """Work on until another has this worker's place; then `left` turns true."""
        if not self._leaving_since:
            self._leaving_since = time.monotonic()
            logger.info("leaving: handing over %s", self.member.address or "nothing")
            self.lease.update(leaving=True)

    def stop(self) -> None:
        """Give the lease back."""
        self.plan_follower.stop()
        self.lease.stop()

    def settle(self) -> None:
        """In Celery's thread, now and then: consume the queue of the place, and no other."""
        self._settled = time.monotonic()
        if self.member.state == FAILED and self.plan_follower.place is not None:
            self.lease.update(state=LOADING, problem="")  # it moves again
        place = self.plan_follower.place
        if place is not self._place:
            if self._place is not None:
                self._place.exchange.close()
            self._place = place
        wanted = str(place.address) if place is not None else ""
        if wanted != self._queue:
            self._consume(wanted)
        if self._leaving_since and not self.left:
            self.left = self._may_leave()

    def _consume(self, queue: str) -> None:
        if self._queue:
            self._consumer.cancel_task_queue(self._queue)
            self._changed = time.monotonic()
        if queue:
            self.app.amqp.queues[queue]  # declares it, which Celery's own method would not
            self._consumer.add_task_queue(queue)
        self._queue = queue

    def _consumes(self, place: Place | None) -> bool:
        """Does Celery consume what `place` needs, and nothing else any more? Says so in the lease.

        Called by the keeper.
        """
        if self._settled and time.monotonic() - self._settled > settings().step_timeout_s:
            self._report_stuck()
            return False
        if self._consumer is None or self._queue != (str(place.address) if place else ""):
            return False
        if self._changed and time.monotonic() - self._changed < LINGER_S:
            return False
        if self.member.queue != self._queue:
            self.lease.update(queue=self._queue)
        return True

    def _report_stuck(self) -> None:
        """Celery's thread hangs: the lease is held, and nobody computes."""
        if self.member.state == READY:
            problem = f"its main thread has not moved for {settings().step_timeout_s:g} s"
            logger.error("%s", problem)
            self.lease.update(state=FAILED, problem=problem)

    def _may_leave(self) -> bool:
        """Has another its place, or is there nobody to wait for?"""
        if not self.member.address:
            return True
        if time.monotonic() - self._leaving_since > LEAVE_S:
            logger.warning("nobody has taken over %s: leaving all the same", self.member.address)
            return True
        try:
            return not leader_of(self._client)
        except redis.RedisError:
            return True

    # -- spans ---------------------------------------------------------------------------------

    def run_span(
        self,
        request: Any,
        epoch: int,
        number: int,
        start: int,
        stop: int,
        rows: bytes | None,
        hidden: bytes | None,
    ) -> Part:
        """This shard's part of layers [start, stop) of a step.

        request: Celery's, with the chord's headers.
        rows, hidden: the encoded Step and the hidden states before `start`, where they are small
            enough to come with the message; else they lie in Redis.

        Raises:
            Ignore: the message is stale, a duplicate or another's; nothing changes.
            StepFailed: this shard, or a peer it waited for, could not.
        """
        place = self.plan_follower.place
        if place is None or place.plan.epoch != epoch:
            self._not_of_my_plan(request, place, epoch, number, (start, stop, rows, hidden))
            raise Ignore
        try:
            place.guard.check(number, start)
            step, before = self._inputs(place, number, start, rows, hidden)
            place.guard.admit(step, start)
        except Ignore as reason:
            logger.debug("%s, dropped", reason)
            raise
        except redis.RedisError as error:
            raise ShardUnready(f"{place.address} has lost Redis: {error}") from error
        part = self._compute(place, step, Range(start, stop), before)
        place.guard.done(number, stop)
        return part

    def _not_of_my_plan(
        self, request: Any, place: Place | None, epoch: int, number: int, rest: tuple[Any, ...]
    ) -> None:
        """A message of another epoch: drop a stale one, give back one that is another worker's.

        A process that was stopped and wakes up may take a message meant for its successor.
        """
        known = max(self.plan_follower.epoch, place.plan.epoch if place else 0)
        plan = Plans(self._client).current()
        if epoch < known or plan is None or plan.epoch != epoch:
            logger.debug("step %d of epoch %d is stale, dropped", number, epoch)
            return
        own = plan.placed().get(self.member.id)
        queue = request.delivery_info["routing_key"]
        if own is not None and str(Address(*own)) == queue:
            raise ShardUnready(
                f"{queue} has no weights of plan {epoch}: it is {self.member.state} "
                f"{self.member.problem}".rstrip()
            )
        logger.info("step %d is for another worker of %s: given back", number, queue)
        self.app.messenger.give_back(
            keys.RUN_SPAN_TASK,
            [epoch, number, *rest],
            queue,
            group_id=request.group,
            group_index=request.group_index,
            chord=request.chord,
        )
        self._consume("")

    def _compute(self, place: Place, step: Step, span: Range, hidden: bytes | None) -> Part:
        import torch

        from skynet.worker.all_reduce import AllReduce

        if self.plan_follower.threads_changed:
            torch.set_num_threads(self.plan_follower.threads_changed)
            self.plan_follower.threads_changed = 0
        exchange = place.exchange
        started, exchange.waited_s = time.perf_counter(), 0.0
        key = keys.step_key(step.epoch, step.number)
        exchange.still_wanted = lambda: (
            self.plan_follower.place is place and bool(self._client.exists(key))
        )
        first = place.model.first_sum(span.start)
        all_reduce = AllReduce(exchange, step.epoch, step.number, first, settings().exchange_dtype)
        try:
            before = None
            if hidden is not None:
                array = np.frombuffer(bytearray(hidden), dtype=np.float32)
                before = torch.from_numpy(array.reshape(step.num_tokens, -1))
            partial, candidates, vectors = place.model.run(step, span, before, all_reduce)
        except Exception as error:
            cause = (
                str(error) if isinstance(error, PeerLost) else f"{type(error).__name__}: {error}"
            )
            exchange.abort(step.epoch, step.number, all_reduce.position, cause)
            if isinstance(error, PeerLost):
                raise
            raise ShardFailed(
                f"{place.address} (pid {self.member.pid} on {self.member.host}) failed at layers "
                f"[{span.start}, {span.stop}) of step {step.number}: {cause}"
            ) from error
        self.member.steps += 1
        waited = exchange.waited_s
        return Part(
            None if partial is None else partial.cpu().numpy(),
            candidates,
            time.perf_counter() - started - waited,
            waited,
            vectors,
        )

    def _inputs(
        self, place: Place, number: int, start: int, rows: bytes | None, hidden: bytes | None
    ) -> tuple[Step, bytes | None]:
        """The step and the hidden states before `start`: what did not come, in one round trip."""
        epoch, known = place.plan.epoch, place.guard.steps.get(number)
        if known is None and rows is not None:
            known = _remember(place, rows)
        rows_key = keys.step_key(epoch, number)
        hidden_key = keys.hidden_key(keys.chord_id(epoch, number, start))
        redis_keys = [rows_key] if known is None else []
        if hidden is None and start > (known[0].start if known else 0):
            redis_keys.append(hidden_key)
        values: list[bytes | None] = self._client.mget(redis_keys) if redis_keys else []  # type: ignore[assignment]
        found = dict(zip(redis_keys, values, strict=True))
        if known is None:
            known = _remember(place, found[rows_key], rows_key)
        if start == known[0].start:
            return known[0], None
        hidden = hidden or found.get(hidden_key)
        if hidden is None:
            raise ShardUnready(_gone(place, hidden_key))
        return known[0], hidden

    def advance(
        self, parts: list[bytes], epoch: int, number: int, layer: int, spent_s: float
    ) -> None:
        """Sum the parts of a span, in shard order, and send the chord that starts at `layer`."""
        place = self.plan_follower.place
        if place is None or place.plan.epoch != epoch or number not in place.guard.steps:
            logger.info("step %d of epoch %d is stale, not advanced", number, epoch)
            return
        step, rows = place.guard.steps[number]
        decoded = [Part.decode(data) for data in parts]
        total: Any = None
        for part in decoded:
            if part.hidden is None:
                raise ShardFailed(f"step {number}: a part before layer {layer} is empty")
            total = part.hidden.copy() if total is None else total + part.hidden
        self.app.messenger.emit_chord(
            place.plan,
            number,
            next_span(place.plan, layer, step.layers_per_chord),
            rows=rows,
            hidden=total.tobytes(),
            spent_s=spent_s + max(part.busy_s for part in decoded),
        )


def _remember(place: Place, rows: bytes | None, key: str = "") -> tuple[Step, bytes]:
    """Keep a step for its later spans; `key` is where its rows were looked for."""
    if rows is None:
        raise ShardUnready(_gone(place, key))
    known = (Step.decode(rows), rows)
    place.guard.remember(*known)
    return known


def _gone(place: Place, key: str) -> str:
    return (
        f"{place.address}: {key} is not in Redis: the step was given up, or Redis lost its memory"
    )
