"""One shard worker: its lease, its place and the queue it consumes.

Three threads: Celery's runs spans and consumes the queue of the place; the plan follower's takes
places and loads weights; the lease's renews the lease.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any

import redis

from skynet.exchange.listener import Listener, machine_id
from skynet.exchange.settling import links_allowed, tcp_allowed
from skynet.settings import settings
from skynet.store.connection import connect
from skynet.store.leader import leader_of
from skynet.store.lease import Lease
from skynet.store.members import FAILED, LOADING, READY, Member
from skynet.wire import keys
from skynet.wire.keys import Address
from skynet.worker.memory import free_memory
from skynet.worker.plan_follower import Place, PlanFollower
from skynet.worker.span_runner import SpanRunner

if TYPE_CHECKING:
    from skynet.chords.app import SkynetCelery

logger = logging.getLogger(__name__)

SETTLE_S = 0.1
# A pop of the queue that was left may still wait in Redis and take a message.
LINGER_S = keys.POP_S + 0.3
LEAVE_S = 25.0  # less than the 30 s that containers are given to stop


class ShardRuntime:
    """A shard worker; `pinned` is the only address it takes, None: any."""

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
            exchange_dtype=settings().exchange_dtype,
        )
        self.listener = self._listen()
        self.lease = Lease(self.member, settings().lease_s, free_bytes=free_memory)
        self.plan_follower = PlanFollower(self.lease, self._consumes, self.listener)
        self._client = connect()
        self.spans = SpanRunner(app, self._client, self.plan_follower, lambda: self._consume(""))
        self.left = False  # this process may end
        self._consumer: Any = None
        self._queue = ""  # the queue that is consumed
        self._queue_left = 0.0  # time when a queue was last left
        self._leaving_since = 0.0
        self._settled = 0.0  # time of the last `settle`
        self._place: Place | None = None  # as of the last `settle`

    # -- lifecycle -----------------------------------------------------------------------------

    def start(self) -> None:
        """Hold the lease and look for a place."""
        self.lease.start()
        self.plan_follower.start()

    def ready(self, consumer: Any) -> None:
        """Celery is running: from here on it consumes the queue of the worker's place."""
        self._consumer = consumer
        consumer.timer.call_repeatedly(SETTLE_S, self.settle)
        logger.info(
            "member %s has started, for %s", self.member.id, self.member.pinned or "any place"
        )

    def leave(self) -> None:
        """Work on until another worker has this place; then `left` turns true."""
        if not self._leaving_since:
            self._leaving_since = time.monotonic()
            logger.info("leaving: handing over %s", self.member.address or "no place")
            self.lease.update(leaving=True)

    def stop(self) -> None:
        """Give the lease back."""
        self.plan_follower.stop()
        self.lease.stop()
        if self.listener is not None:
            self.listener.close()

    def _listen(self) -> Listener | None:
        """Accept direct links, unless the settings forbid them."""
        self.member.machine = machine_id()
        if not links_allowed():
            return None
        listener = Listener(self.member.id, settings().exchange_listen if tcp_allowed() else None)
        self.member.unix_socket, self.member.tcp_address = listener.unix, listener.tcp
        return listener

    def settle(self) -> None:
        """Called regularly in Celery's thread: consume the queue of the place, and no other."""
        self._settled = time.monotonic()
        if self.member.state == FAILED and self.plan_follower.place is not None:
            self.lease.update(state=LOADING, problem="")  # this thread had been stuck
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
            self._queue_left = time.monotonic()
        if queue:
            self.app.amqp.queues[queue]  # declares it; add_task_queue does not
            self._consumer.add_task_queue(queue)
        self._queue = queue
        node = self._consumer.controller.rename(queue or self.member.pinned)
        if node != self.member.node:
            self.lease.update(node=node)

    def _consumes(self, place: Place | None) -> bool:
        """Whether Celery consumes the queue of `place` and no other; tells the lease.

        Called by the plan follower.
        """
        if self._settled and time.monotonic() - self._settled > settings().step_timeout_s:
            self._report_stuck()
            return False
        if self._consumer is None or self._queue != (str(place.address) if place else ""):
            return False
        if self._queue_left and time.monotonic() - self._queue_left < LINGER_S:
            return False
        if self.member.queue != self._queue:
            self.lease.update(queue=self._queue)
        return True

    def _report_stuck(self) -> None:
        """Celery's thread hangs while the lease is still renewed."""
        if self.member.state == READY:
            problem = f"its main thread has been stuck for {settings().step_timeout_s:g} s"
            logger.error("%s", problem)
            self.lease.update(state=FAILED, problem=problem)

    def _may_leave(self) -> bool:
        """Whether another worker has the place, or none will take it."""
        if not self.member.address:
            return True
        if time.monotonic() - self._leaving_since > LEAVE_S:
            logger.warning("no worker has taken over %s: leaving anyway", self.member.address)
            return True
        try:
            return not leader_of(self._client)
        except redis.RedisError:
            return True
