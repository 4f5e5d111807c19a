"""The orchestrator process: leads or stands by; engine and conductor, wired to Redis and Celery.

All of its state can be rebuilt from Redis. Messages and a timer run in Celery's thread; the lease,
and with it the leadership, is kept by a thread of its own.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Any

import redis

from skynet import errors
from skynet.chords.messenger import next_span
from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.sequence import Sequence
from skynet.errors import ClusterUnreachable, Fenced, SkynetError, StepFailed
from skynet.orchestrator.answers import Answers
from skynet.orchestrator.intake import Intake, Served, expire
from skynet.orchestrator.membership import Membership
from skynet.orchestrator.plan_controller import PlanController, layout_of
from skynet.settings import settings
from skynet.store.connection import connect
from skynet.store.events import Events
from skynet.store.leader import Held, Leadership
from skynet.store.lease import Lease
from skynet.store.members import Member, Members
from skynet.store.plans import Plans, Target
from skynet.store.requests import Requests
from skynet.wire import keys
from skynet.wire.step import Part, Step

if TYPE_CHECKING:
    from skynet.chords.app import SkynetCelery

logger = logging.getLogger(__name__)

TICK_S = 0.05
TARGET_S = 0.25
SWEEP_S = 2.0
REPORT_S = 0.5
STUCK_S = 30.0  # a leader whose main thread does nothing for so long lets another lead
DRAIN_S = 5.0  # for the running step when it is told to leave
LEADING, STANDBY = "leading", "standby"


class OrchestratorRuntime:
    """What the worker of queue `orchestrator` does."""

    def __init__(self, app: SkynetCelery, node: str) -> None:
        self.app = app
        self.client = connect()
        self.plans = Plans(self.client)
        self.events = Events(self.client)
        self.member = Member(
            uuid.uuid4().hex[:12],
            node,
            keys.ORCHESTRATOR_QUEUE,
            socket.gethostname(),
            os.getpid(),
            STANDBY,
        )
        lease_s = settings().lease_s
        self.leadership = Leadership(connect(timeout_s=lease_s), self.member.id, lease_s)
        self.lease = Lease(self.member, lease_s, self._keep_leadership)
        self.requests = Requests(self.client, settings().result_expires_s, lambda: self._fence)
        self.answers = Answers(app, self.requests)
        self.membership = Membership(Members(self.client, lease_s), self._tell)
        self.engine: Engine | None = None
        self.plan_controller: PlanController | None = None
        self.intake: Intake | None = None
        self.left = False
        self.problem = ""  # why nothing can be led
        self._target: Target | None = None
        self._fence = ""  # the one that this thread works under
        self._wiped = False
        self._rival_broken = 0
        self._orphans: list[Sequence] = []
        self._away = False  # Redis did not answer at the last tick
        self._connection = 0  # Redis's number for it: another one means that it was lost
        self._leaving_since = 0.0
        self._ticked = time.monotonic()
        self._consumer: Any = None
        self._due: dict[str, float] = {}

    # -- lifecycle -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to hold the lease, and to lead if nobody does."""
        self.lease.start()

    def ready(self, consumer: Any) -> None:
        """Celery runs from here on: start the timer in its loop."""
        self._consumer = consumer
        self._ticked = time.monotonic()
        consumer.timer.call_repeatedly(TICK_S, self.tick)
        logger.info("orchestrator %s is here", self.member.id)

    def leave(self) -> None:
        """End the running step, then let another lead; then `left` turns true."""
        self._leaving_since = time.monotonic()
        self.lease.update(leaving=True)

    def stop(self) -> None:
        """Give the leases back; unfinished requests stay in Redis for the next leader."""
        try:
            if self._fence:
                self.client.delete(keys.ENGINE_KEY)
            self.leadership.resign()
        except redis.RedisError:
            logger.warning("could not give the leadership back: it runs out by itself")
        self.lease.stop()

    # -- leadership ----------------------------------------------------------------------------

    def _keep_leadership(self, client: redis.Redis) -> None:
        """In the lease's thread, with every renewal: keep the lead, or take one that is free."""
        leadership = self.leadership
        if leadership.leads:
            if time.monotonic() - self._ticked > STUCK_S:
                logger.error("the main thread does nothing for %g s: another may lead", STUCK_S)
                leadership.resign()
                return
            held = leadership.renew()
            if held is not Held.YES:
                self._wiped = self._wiped or held is Held.WIPED
                leadership.lose()
        if not leadership.leads and self._consumer is not None and not self._leaving_since:
            self._depose_the_dead(client)
            plan_controller = self.plan_controller
            leadership.acquire(plan_controller.epoch if plan_controller else 0)

    def _depose_the_dead(self, client: redis.Redis) -> None:
        """Take the lead from an orchestrator whose connection Redis has seen close."""
        holder = self.leadership.holder()
        leader = holder.partition(":")[2]
        members = Members(client, settings().lease_s)
        rival = [m for m in members.all() if m.id == leader] if leader else []
        self._rival_broken = self._rival_broken + 1 if members.broken(rival) else 0
        if self._rival_broken >= 2:
            logger.warning("orchestrator %s has lost its connection: it is deposed", leader)
            self.leadership.depose(holder)
            self._rival_broken = 0

    def _promote(self, fence: str) -> None:
        """Take up everything from Redis, and consume the queue; tried again if Redis breaks off."""
        self.app.amqp.queues[keys.ORCHESTRATOR_QUEUE]  # declares it
        self._consumer.add_task_queue(keys.ORCHESTRATOR_QUEUE)
        self._fence = fence
        self.lease.update(state=LEADING)
        self._tell("leader", f"orchestrator {self.member.id}, pid {self.member.pid}")
        for sequence in self._orphans:
            self.answers.bury(sequence)
        self._orphans = []
        self._due.clear()

    def _lose(self) -> None:
        """Something was refused: another leads."""
        self.leadership.lose(self._fence)
        if self._fence:
            self._demote()

    def _demote(self) -> None:
        """Another leads, or nobody: know nothing, write nothing."""
        logger.warning("orchestrator %s does not lead any more", self.member.id)
        if self._wiped and self.engine is not None:
            self._orphans = list(self.engine.sequences.values())
        self._wiped, self._fence = False, ""
        self._consumer.cancel_task_queue(keys.ORCHESTRATOR_QUEUE)
        self.engine = self.plan_controller = self._target = None
        self.membership = Membership(self.membership.members, self._tell)
        self.lease.update(state=STANDBY, epoch=0)

    # -- the timer -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Look after leadership, target, members, plan, deadlines and forgotten requests."""
        self._ticked = time.monotonic()
        fence = self.leadership.fence
        try:
            if self._fence and fence != self._fence:
                self._demote()
            if fence and not self._fence:
                self._promote(fence)
            if self._fence:
                self._lead()
            if self._leaving_since and not self.left:
                self._step_aside()
        except Fenced:
            self._lose()
        except redis.RedisError as error:
            if not self._away:
                logger.warning("Redis: %s; trying again", error)
            self._away = True

    def _lead(self) -> None:
        if self._is_due("target", TARGET_S):
            self._follow_target()
        if self._away:
            self.client.ping()
            self._away = False
            self._tell("redis", "was away and is back")
            if self.engine is not None:
                self.engine.suspend()
            if self.plan_controller is not None:
                self.plan_controller.step_failed("Redis was away")
        if self.plan_controller is not None and self.engine is not None and not self._leaving_since:
            if self.member.connection != self._connection:
                self._connection = self.member.connection
                self.engine.hurry()
            self.plan_controller.tick()
            self.engine.tick()
            if self.intake is not None and self._is_due("sweep", SWEEP_S):
                self.intake.sweep(self.engine)
        elif self._is_due("expire", SWEEP_S):
            expire(self.requests, self.answers, self.problem)
        if self._is_due("report", REPORT_S):
            self._report()

    def _step_aside(self) -> None:
        late = time.monotonic() - self._leaving_since > DRAIN_S
        if self.engine is None or not self._fence or self.engine.drain() or late:
            self.leadership.resign()
            self.left = True

    def _is_due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0):
            return False
        self._due[what] = now + every_s
        return True

    def _follow_target(self) -> None:
        """Have the engine and the conductor for what is asked for."""
        target = self.plans.target()
        if target is None or target == self._target:
            return
        served = self._served_by(target)
        if served is None:
            return
        old = self._target
        same = ("model", "num_slots", "slot_tokens")
        if (
            self.plan_controller is not None
            and old is not None
            and all(getattr(old, name) == getattr(target, name) for name in same)
        ):
            self.plan_controller.follow(target)
            self._target = target
            return
        engine = Engine(
            layout_of(served.arch, target, 1, 1),
            self,
            self.answers,
            EngineOptions(
                settings().max_batch_tokens, settings().step_timeout_s, settings().chord_share
            ),
            clock=self.requests.now,
        )
        plan_controller = PlanController(
            self.plans,
            self.membership,
            engine,
            served.arch,
            target,
            lambda: self._fence,
            self._tell,
        )
        if self.engine is not None:
            self.engine.suspend()
        # All or nothing: Redis may break off on the way, and then it is tried again.
        self.intake = Intake(served, target, self.requests, self.answers)
        self.engine, self.plan_controller, self._target = engine, plan_controller, target
        self.intake.sweep(engine)

    def _served_by(self, target: Target) -> Served | None:
        """The model that is asked for; None: it is not staged."""
        if self.intake is not None and self.intake.served.digest == target.model:
            return self.intake.served
        served, self.problem = Served.staged(self.client, target)
        return served

    def _report(self) -> None:
        engine, plan_controller = self.engine, self.plan_controller
        self.lease.update(
            quietly=True,
            epoch=plan_controller.epoch if plan_controller else 0,
            steps=engine.num_steps if engine else 0,
        )
        self.client.set(
            keys.ENGINE_KEY, json.dumps(self.status()), px=int(settings().lease_s * 1000)
        )

    def status(self) -> dict[str, Any]:
        """What the engine does, for `skynet status`."""
        engine, plan_controller = self.engine, self.plan_controller
        if engine is None or plan_controller is None:
            state = {"state": self.problem or "waiting for a model", "running": 0, "waiting": 0}
            return {**state, "leader": self.member.id}
        return {
            **plan_controller.status(),
            "leader": self.member.id,
            "running": len(engine.scheduler.running),
            "waiting": len(engine.scheduler.waiting),
            "steps_in_flight": len(engine.in_flight),
            "steps": engine.num_steps,
            "tokens": engine.num_tokens,
            "chord_ms": round(engine.timing.spans.chord_s * 1000, 3),
            "layers_per_chord": engine.layers_per_chord,
        }

    def _tell(self, kind: str, text: str, seconds: float = 0.0) -> None:
        level = logging.WARNING if kind in ("lost", "redis") else logging.INFO
        logger.log(level, "%s: %s%s", kind, text, f" ({seconds:.2f} s)" if seconds else "")
        self.events.add(kind, text, seconds)

    # -- messages ------------------------------------------------------------------------------

    def on_message(self, name: str, *arguments: Any) -> None:
        """Do what a task asks for: `accept`, `cancel`, `finish_step` or `fail_step`.

        An error here would be stored as the task's result, which is the request's own. Nothing is
        lost without it: the record, or the step's deadline, tells what there is to do.
        """
        try:
            getattr(self, name)(*arguments)
        except Fenced:
            self._lose()
        except redis.RedisError as error:
            logger.warning("%s: Redis: %s", name, error)
            self._away = True

    def accept(self, request_id: str) -> None:
        """Take a request in whose record has been written."""
        if self.engine is not None and self.intake is not None:
            self.intake.accept(self.engine, request_id)
        # Else the sweep finds it when there is a model, or another leads and finds it.

    def cancel(self, request_id: str) -> None:
        if self.engine is not None:
            self.engine.cancel(request_id)

    def finish_step(self, parts: Items[bytes], epoch: int, step: int, spent_s: float) -> None:
        if self._is_for_another(epoch):
            args = [list(parts), epoch, step, 0, spent_s]
            self.app.messenger.give_back(keys.FINISH_STEP_TASK, args, keys.ORCHESTRATOR_QUEUE)
        elif self.engine is not None:
            decoded = [Part.decode(part) for part in parts]
            self.engine.finish_step(epoch, step, decoded, spent_s)

    def fail_step(self, epoch: int, step: int, kind: str, message: str) -> None:
        if self._is_for_another(epoch):
            args = [epoch, step, kind, message]
            self.app.messenger.give_back(keys.FAIL_STEP_TASK, args, keys.ORCHESTRATOR_QUEUE)
            return
        cls = getattr(errors, kind, StepFailed)
        if not (isinstance(cls, type) and issubclass(cls, StepFailed)):
            cls = StepFailed
        if self.engine is not None:
            self.engine.fail_step(epoch, step, cls(message))

    def _is_for_another(self, epoch: int) -> bool:
        """A message of a plan that another leader has made, while this process was stopped?"""
        if self.plan_controller is not None and epoch <= self.plan_controller.epoch:
            return False
        if self._fence and self.leadership.holder() == self._fence:
            return False  # of the leader before, and stale
        self._lose()
        return True

    # -- the engine's carrier ------------------------------------------------------------------

    def send(self, step: Step) -> None:
        if self.engine is None:
            raise SkynetError("no plan is in force")
        plan = self.engine.plan
        span = next_span(plan, step.start, step.layers_per_chord)
        rows = step.encode()
        try:
            self.app.messenger.emit_chord(plan, step.number, span, rows=rows, fence=self._fence)
        except redis.RedisError as error:
            raise ClusterUnreachable(f"step {step.number} could not be sent: {error}") from error

    def give_up(self, step: Step) -> None:
        try:
            self.client.delete(keys.step_key(step.epoch, step.number))
        except redis.RedisError:
            self._away = True  # it runs out by itself

    def step_failed(self, error: SkynetError) -> None:
        if isinstance(error, ClusterUnreachable):
            self._away = True
        if self.plan_controller is not None:
            self.plan_controller.step_failed(str(error))

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        if self.plan_controller is not None:
            self.plan_controller.replayed(num_sequences, num_tokens, seconds)
