"""The orchestrator process: leads or stands by.

All of its state can be rebuilt from Redis. Messages and a timer run in Celery's thread; the lease's
thread decides who leads.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any

import redis

from skynet.errors import Fenced
from skynet.orchestrator.context import Context
from skynet.orchestrator.election import Election
from skynet.orchestrator.intake import expire
from skynet.orchestrator.leader import STANDBY, Leader
from skynet.orchestrator.messages import Messages
from skynet.settings import settings
from skynet.store.connection import check_writes, connect, server_info
from skynet.store.foreign import delete_foreign, is_wrong_type
from skynet.store.leader import Leadership
from skynet.store.lease import Lease
from skynet.store.members import Member
from skynet.wire import keys

if TYPE_CHECKING:
    from skynet.chords.app import SkynetCelery

logger = logging.getLogger(__name__)

TICK_S = 0.05
TARGET_S = 0.25
SWEEP_S = 2.0
REPORT_S = 0.5
METRICS_S, LOGGED_METRICS_S = 1.0, 10.0  # the latter if Redis appends each write to its file
DRAIN_S = 5.0  # for the running step when the process leaves


class Intervals:
    """When each kind of work was last due."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def is_due(self, name: str, every_s: float) -> bool:
        """True at most every `every_s`."""
        now = time.monotonic()
        if now < self._next.get(name, 0):
            return False
        self._next[name] = now + every_s
        return True

    def clear(self) -> None:
        """Everything is due."""
        self._next.clear()


class OrchestratorRuntime:
    """The worker of queue `orchestrator`.

    left: it has handed over after `leave`.
    """

    def __init__(self, app: SkynetCelery, node: str) -> None:
        self.context = Context(app)
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
        self.election = Election(self.leadership, lambda: self.leader.epoch)
        self.lease = Lease(self.member, lease_s, self.election.renew)
        self.leader = Leader(self.context, self.election, self.lease)
        self.messages = Messages(self.leader)
        self.on_message = self.messages.handle
        self.intervals = Intervals()
        self.left = False
        # The lease's connection: Redis's id, which another server may use too, and losses so far.
        self._connection = 0, 0
        self._run_id = ""  # of the server, when that connection was made
        self._leaving_since = 0.0

    # -- lifecycle -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to renew the lease."""
        self.lease.start()

    def ready(self, consumer: Any) -> None:
        """Celery's consumer runs: start the timer in its loop, and lead if nobody does."""
        self.leader.consumer = self.context.answers.consumer = consumer
        self.election.ticked = time.monotonic()
        self.election.is_candidate = not self._leaving_since
        consumer.timer.call_repeatedly(TICK_S, self.tick)
        logger.info("orchestrator %s has started", self.member.id)

    def leave(self) -> None:
        """Finish the running step, then let another lead; then `left` is True."""
        self._leaving_since = time.monotonic()
        self.election.is_candidate = False
        self.lease.update(leaving=True)

    def stop(self) -> None:
        """Give the leases back; unfinished requests stay in Redis for the next leader."""
        try:
            if self.context.fence:
                self.context.client.delete(keys.engine_key())
            self.leadership.resign()
        except redis.RedisError:
            logger.warning("could not give the leadership back: it expires")
        self.lease.stop()

    # -- the timer -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Check leadership, target, members, plan, deadlines and lost messages."""
        self.election.ticked = time.monotonic()
        try:
            was_leading = self.context.fence
            self.leader.follow_election()
            if self.context.fence:
                if self.context.fence != was_leading:
                    self.intervals.clear()
                self._lead()
            if self._leaving_since and not self.left:
                self._hand_over()
        except Fenced:
            self.leader.lose()
        except redis.RedisError as error:
            if is_wrong_type(error) and delete_foreign(self.context.client):
                return
            if not self.context.redis_away:
                logger.warning("Redis: %s; trying again", error)
            self.context.redis_away = True

    def _lead(self) -> None:
        leader, context = self.leader, self.context
        if self.intervals.is_due("target", TARGET_S):
            leader.follow_target()
        service = leader.service
        if (self.member.connection, self.lease.num_losses) != self._connection:
            self._reconnected()
        if context.redis_away:
            check_writes(context.client)
            context.redis_away = False
            context.tell("redis", "was away and is back")
            if service is not None:
                service.redis_was_away()
        if service is not None and not self._leaving_since:
            service.plan_controller.tick()
            service.engine.tick()
            service.intake.accept_compiled(service.engine)
            if self.intervals.is_due("sweep", SWEEP_S):
                service.sweep()
        elif self.intervals.is_due("expire", SWEEP_S):
            expire(context.requests, context.answers, leader.problem)
        if self.intervals.is_due("report", REPORT_S):
            self._report()
        metrics = context.metrics
        if self.intervals.is_due("metrics", METRICS_S if metrics.spares_log else LOGGED_METRICS_S):
            reading = service.reading() if service is not None else None
            metrics.write(reading, context.requests.now(), context.fence)

    def _reconnected(self) -> None:
        """The lease has another connection: messages may be lost, and after a failover data, too.

        Another server is recognized by its run id. Where INFO is forbidden, deadlines tell.
        """
        connection = self.member.connection, self.lease.num_losses
        run_id = str(server_info(self.context.client, "server").get("run_id", ""))
        if self._run_id not in ("", run_id):
            self.context.redis_away = True
        elif self.leader.service is not None:
            self.leader.service.engine.hurry()
        self._connection, self._run_id = connection, run_id

    def _hand_over(self) -> None:
        """Resign at the step boundary, or when the running step takes too long."""
        late = time.monotonic() - self._leaving_since > DRAIN_S
        service = self.leader.service
        if service is None or not self.context.fence or service.engine.drain() or late:
            self.leadership.resign()
            self.left = True

    def _report(self) -> None:
        service = self.leader.service
        self.lease.update(
            quietly=True,
            epoch=self.leader.epoch,
            steps=service.engine.num_steps if service is not None else 0,
        )
        self.context.client.set(
            keys.engine_key(), json.dumps(self.status()), px=int(settings().lease_s * 1000)
        )

    def status(self) -> dict[str, Any]:
        """For `skynet status`."""
        service = self.leader.service
        if service is None:
            state = self.leader.problem or "waiting for a model"
            return {"state": state, "running": 0, "waiting": 0, **self._about()}
        return {**service.plan_controller.status(), **self._about(), **service.engine_status()}

    def _about(self) -> dict[str, Any]:
        return {"leader": self.member.id, "sees_connections": self.leader.sees_connections}
