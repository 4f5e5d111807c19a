"""The orchestrator process: the engine, wired to Redis and Celery.

All of its state can be rebuilt from Redis. Everything runs in Celery's thread: messages, and a
timer that watches the plan, the members and the deadlines.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Any

import psutil
import redis

from skynet import errors, names
from skynet.chords import next_span
from skynet.engine.engine import Engine
from skynet.engine.sequence import Sequence
from skynet.errors import ClusterUnreachable, ShardLost, SkynetError, StepFailed
from skynet.names import Address
from skynet.planning.plan import Plan
from skynet.settings import settings
from skynet.step import Part, Step
from skynet.store.connection import connect
from skynet.store.members import Member, Members
from skynet.store.plans import Plans
from skynet.store.requests import End, Record, Requests, Token
from skynet.store.weights import WeightStore
from skynet.text import StopStrings, Text

if TYPE_CHECKING:
    from skynet.celery import SkynetCelery

logger = logging.getLogger(__name__)

TICK_S = 0.1
WATCH_S = 0.5
SWEEP_S = 2.0


class OrchestratorRuntime:
    """What the worker of queue `orchestrator` does."""

    def __init__(self, app: SkynetCelery, node: str) -> None:
        self.app = app
        self.client = connect()
        self.plans = Plans(self.client)
        self.members = Members(self.client, settings().lease_s)
        self.requests = Requests(self.client, settings().result_expires_s)
        self.member = Member(
            node, names.ORCHESTRATOR_QUEUE, socket.gethostname(), os.getpid(), "waiting"
        )
        self.engine: Engine | None = None
        self.text: Text | None = None
        self.end_ids: frozenset[int] = frozenset()
        self.max_length = 0
        self.missing: list[str] = []
        self._workers: dict[str, tuple[str, int]] = {}
        self._consumer: Any = None
        self._due: dict[str, float] = {}

    # -- lifecycle -----------------------------------------------------------------------------

    def start(self) -> None:
        """Nothing before Celery consumes."""

    def ready(self, consumer: Any) -> None:
        """Celery consumes the queue from here on: start the timer in its loop."""
        self._consumer = consumer
        consumer.timer.call_repeatedly(TICK_S, self.tick)
        self.tick()
        logger.info("orchestrator ready")

    def stop(self) -> None:
        """Give the lease back; unfinished requests stay in Redis for the next orchestrator."""
        try:
            self.members.leave(self.member.node)
            self.client.delete(names.ENGINE_KEY)
        except redis.RedisError:
            logger.warning("could not give the lease back: it runs out by itself")

    def tick(self) -> None:
        """Look after plan, members, leases, deadlines and forgotten requests."""
        try:
            waiting_for_shards = self.engine is None or not self.engine.ready
            if self._is_due("watch", TICK_S if waiting_for_shards else WATCH_S):
                self._watch_plan()
                self._watch_members()
            if self._is_due("lease", settings().lease_s / 4):
                self._renew()
            if self.engine is not None:
                self.engine.tick()
                if self._is_due("sweep", SWEEP_S):
                    self._sweep()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            logger.warning("Redis: %s; trying again", error)

    def _is_due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0):
            return False
        self._due[what] = now + every_s
        return True

    def _watch_plan(self) -> None:
        plan = self.plans.current()
        if plan is None or (self.engine is not None and self.engine.plan.epoch == plan.epoch):
            return
        store = WeightStore(self.client)
        manifest = store.manifest(plan.model)
        if manifest is None:
            logger.error("plan %d is of a model that is not staged", plan.epoch)
            return
        files = store.read_files(manifest)
        self.text = Text(files)
        self.end_ids = end_ids(manifest.config, files)
        self.max_length = plan.slot_tokens
        old = self.engine
        self.engine = Engine(
            plan,
            self,
            self,
            max_batch_tokens=settings().max_batch_tokens,
            step_timeout_s=settings().step_timeout_s,
            chord_share=settings().chord_share,
            # Step numbers are never used twice in an epoch, by any orchestrator.
            first_step=int(time.time() * 1000) % 2**40,
        )
        self._workers = {}
        if old is not None:
            for flight in old.in_flight.values():
                self.give_up(flight.step)
        logger.info(
            "plan %d: %s on %d stages x %d shards, %s",
            plan.epoch,
            plan.name,
            len(plan.stages),
            plan.num_shards,
            plan.dtype,
        )
        self._sweep()

    def _watch_members(self) -> None:
        engine = self.engine
        if engine is None:
            return
        epoch = engine.plan.epoch
        live = self.members.all()
        counts = Counter(member.address for member in live)
        ready = {
            member.address: member
            for member in live
            if member.state == "ready" and member.epoch == epoch and counts[member.address] == 1
        }
        wanted = [str(Address(*address)) for address in engine.plan.addresses()]
        workers = {a: (ready[a].node, ready[a].pid) for a in wanted if a in ready}
        self.missing = [
            f"{address} (has {counts[address]} workers)" if counts[address] > 1 else address
            for address in wanted
            if address not in ready
        ]
        lost = [a for a, worker in self._workers.items() if workers.get(a) != worker]
        if lost and engine.ready:
            told = ", ".join(f"{a} (pid {self._workers[a][1]})" for a in lost)
            logger.error("lost %s", told)
            engine.shards_lost(
                ShardLost(f"{told} stopped renewing its lease: its worker died or lost Redis")
            )
        self._workers = workers
        if not self.missing and not engine.ready:
            logger.info("all %d shards are ready", len(wanted))
            engine.ready = True
            engine.pump()

    def _renew(self) -> None:
        member = self.member
        member.resident_bytes = psutil.Process().memory_info().rss
        member.free_bytes = psutil.virtual_memory().available
        if self.engine is not None:
            member.epoch = self.engine.plan.epoch
            member.state = "ready" if self.engine.ready else "waiting"
            member.steps = self.engine.num_steps
        self.members.renew(member)
        self.client.set(
            names.ENGINE_KEY, json.dumps(self.status()), px=int(settings().lease_s * 1000)
        )

    def status(self) -> dict[str, Any]:
        """What the engine does, for `skynet status`."""
        engine = self.engine
        if engine is None:
            return {"state": "waiting for a plan", "running": 0, "waiting": 0}
        return {
            "state": "ready" if engine.ready else f"waiting for {', '.join(self.missing)}",
            "epoch": engine.plan.epoch,
            "running": len(engine.scheduler.running),
            "waiting": len(engine.scheduler.waiting),
            "steps_in_flight": len(engine.in_flight),
            "steps": engine.num_steps,
            "tokens": engine.num_tokens,
            "chord_ms": round(engine.spans.chord_s * 1000, 3),
            "layers_per_chord": engine.layers_per_chord,
        }

    # -- messages ------------------------------------------------------------------------------

    def accept(self, request_id: str) -> None:
        """Take a request in whose record has been written."""
        if self.engine is None:
            return  # the sweep finds it when there is a plan
        record = self.requests.read(request_id)
        if record is None:
            self.requests.forget(request_id)
            return
        if record.state == "done" or request_id in self.engine.sequences:
            return
        self._adopt(record)

    def cancel(self, request_id: str) -> None:
        if self.engine is not None:
            self.engine.cancel(request_id)

    def finish_step(self, parts: Items[bytes], epoch: int, step: int, spent_s: float) -> None:
        if self.engine is not None:
            decoded = [Part.decode(part) for part in parts]
            self.engine.finish_step(epoch, step, decoded, spent_s)

    def fail_step(self, epoch: int, step: int, kind: str, message: str) -> None:
        cls = getattr(errors, kind, StepFailed)
        if not (isinstance(cls, type) and issubclass(cls, StepFailed)):
            cls = StepFailed
        # A shard that has turned to a newer plan fails the old one's steps: that is no failure of
        # their requests, which go on under the new plan.
        self._watch_plan()
        if self.engine is not None:
            self.engine.fail_step(epoch, step, cls(message))

    def _adopt(self, record: Record) -> None:
        if self.engine is None or self.text is None:
            return
        plan = self._plan()
        sequence = Sequence(
            record,
            self.text.detokenizer(),
            StopStrings(record.options.stop),
            self.end_ids,
            self.max_length,
        )
        if record.emitted:
            sequence.restore(self.requests.emitted_tokens(record.id))
        logger.info(
            "request %s: prompt of %d tokens, up to %d more",
            record.id,
            len(record.prompt),
            record.options.max_tokens,
        )
        if record.model not in ("", plan.model):
            self.failed(
                sequence,
                errors.StepFailed(
                    "the cluster was given another model after this request was submitted: "
                    "submit it again"
                ),
            )
        elif sequence.finish_reason:  # its last token was written, its end was not
            self.finished(sequence)
        elif len(record.prompt) >= self.max_length:
            self.failed(
                sequence,
                errors.BadRequest(
                    f"the prompt has {len(record.prompt)} tokens, a slot of the new plan has "
                    f"{self.max_length}"
                ),
            )
        else:
            self.engine.accept(sequence)
            if record.cancelled:
                self.engine.cancel(record.id)

    def _sweep(self) -> None:
        """Adopt requests whose message was lost, or that another orchestrator left behind."""
        if self.engine is None:
            return
        for request_id in self.requests.open_ids():
            if request_id not in self.engine.sequences:
                self.accept(request_id)

    # -- the engine's carrier ------------------------------------------------------------------

    def send(self, step: Step) -> None:
        plan = self._plan()
        span = next_span(plan, 0, step.layers_per_chord)
        try:
            self.app.messenger.emit_chord(plan, step.number, span, rows=step.encode())
        except redis.RedisError as error:
            raise ClusterUnreachable(f"step {step.number} could not be sent: {error}") from error

    def give_up(self, step: Step) -> None:
        self.client.delete(names.step_key(step.epoch, step.number))

    def _plan(self) -> Plan:
        if self.engine is None:
            raise SkynetError("no plan is in force")
        return self.engine.plan

    # -- the engine's journal ------------------------------------------------------------------

    def started(self, sequences: Items[Sequence]) -> None:
        self.requests.start([sequence.id for sequence in sequences])

    def tokens(self, tokens: Items[tuple[Sequence, Token]]) -> tuple[set[str], set[str]]:
        ids = [sequence.id for sequence, _ in tokens]
        try:
            replies = self.requests.append([(s.id, token) for s, token in tokens])
        except redis.RedisError as error:
            logger.warning("tokens could not be written: %s", error)
            replies = [0] * len(ids)
        told = list(zip(ids, replies, strict=True))
        return {i for i, reply in told if reply < 0}, {i for i, reply in told if reply == 0}

    def finished(self, sequence: Sequence) -> None:
        end = sequence.end()
        result = {
            "text": sequence.text,
            "token_ids": sequence.generated,
            "prompt_tokens": len(sequence.record.prompt),
            "finish_reason": end.finish_reason,
            "timings": end.timings,
        }
        # The result first: once the record has ended, no sweep looks at it again.
        self.app.backend.store_result(sequence.id, result, "SUCCESS")
        if not self.requests.finish(sequence.id, end):
            return
        self._event(
            "task-succeeded",
            sequence,
            result=f"{len(sequence.generated)} tokens, {end.finish_reason}",
            runtime=end.timings["total_s"],
        )
        logger.info(
            "request %s: %d tokens (%s), first after %.3f s, then %.1f tokens/s",
            sequence.id,
            len(sequence.generated),
            end.finish_reason,
            end.timings["first_token_s"],
            end.timings["decode_tokens_per_s"],
        )

    def failed(self, sequence: Sequence, error: SkynetError) -> None:
        name = type(error).__name__
        end = End(error=name, message=str(error), timings=sequence.timings())
        cancelled = isinstance(error, errors.RequestCancelled)
        state = "REVOKED" if cancelled else "FAILURE"
        self.app.backend.store_result(sequence.id, error, state)
        if not self.requests.finish(sequence.id, end):
            return
        if cancelled:
            self._event("task-revoked", sequence, terminated=False, signum=None, expired=False)
        else:
            self._event("task-failed", sequence, exception=f"{name}: {error}", traceback="")
        logger.log(
            logging.INFO if cancelled else logging.ERROR,
            "request %s: %s: %s",
            sequence.id,
            name,
            error,
        )

    def _event(self, kind: str, sequence: Sequence, **fields: Any) -> None:
        """Tell Flower how the request's task ended: Celery let go of it when it was accepted."""
        dispatcher = getattr(self._consumer, "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send(kind, uuid=sequence.id, retry=False, **fields)


def end_ids(config: dict[str, Any], files: dict[str, bytes]) -> frozenset[int]:
    """End-of-sequence ids: the generation config's, or else the model config's."""
    generation = json.loads(files.get("generation_config.json", b"{}") or b"{}")
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return frozenset(int(item) for item in ids if item is not None)
