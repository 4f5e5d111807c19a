"""The leading orchestrator: from promotion to demotion, serving the target's model."""

from __future__ import annotations

import logging
from typing import Any

from skynet.engine.sequence import Sequence
from skynet.errors import IncompatibleVersion, WireError
from skynet.orchestrator.context import Context
from skynet.orchestrator.election import Election
from skynet.orchestrator.intake import Served
from skynet.orchestrator.membership import Membership
from skynet.orchestrator.service import ModelService
from skynet.settings import settings
from skynet.store.lease import Lease
from skynet.store.members import Members
from skynet.store.targets import Target
from skynet.wire import keys

logger = logging.getLogger(__name__)

LEADING, STANDBY = "leading", "standby"


class Leader:
    """The main thread's view of leadership; on standby it serves nothing.

    consumer: Celery's, once it runs.
    problem: why no model is served, or "".
    """

    def __init__(self, context: Context, election: Election, lease: Lease) -> None:
        self.context = context
        self.election = election
        self.lease = lease
        self.consumer: Any = None
        self.service: ModelService | None = None
        self.problem = ""
        self._members = Members(context.client, settings().lease_s)
        self._membership = Membership(self._members, context.tell)
        self._served: Served | None = None  # of the last service
        self._orphans: list[Sequence] = []  # lost with Redis's data, to be failed
        context.spans.serving = self._serving

    @property
    def epoch(self) -> int:
        """Of the plan in force; 0: none."""
        service = self.service
        return service.plan_controller.epoch if service is not None else 0

    def _serving(self) -> tuple[Target | None, int]:
        return (self.service.target if self.service is not None else None), self.epoch

    @property
    def sees_connections(self) -> bool:
        """Whether Redis tells which members' connections are closed."""
        return self._members.sees_connections

    def follow_election(self) -> None:
        """Promote or demote this process as the lease's thread decided."""
        fence = self.election.leadership.fence
        if self.context.fence and fence != self.context.fence:
            self._demote()
        if fence and not self.context.fence:
            self._promote(fence)

    def lose(self) -> None:
        """A write was refused: another orchestrator leads."""
        self.election.leadership.lose(self.context.fence)
        if self.context.fence:
            self._demote()

    def _promote(self, fence: str) -> None:
        """Consume the queue; tried again at the next tick if Redis fails."""
        member = self.lease.member
        self.context.app.amqp.queues[keys.ORCHESTRATOR_QUEUE]  # declares it
        self.consumer.add_task_queue(keys.ORCHESTRATOR_QUEUE)
        self.context.metrics.take_up()
        self.context.fence = fence
        self.lease.update(state=LEADING)
        self.context.tell("leader", f"orchestrator {member.id}, pid {member.pid}")
        for sequence in self._orphans:
            self.context.answers.bury(sequence)
        self._orphans = []

    def _demote(self) -> None:
        """Drop all state: it is in Redis for the next leader."""
        logger.warning("orchestrator %s does not lead any more", self.lease.member.id)
        if self.election.wiped and self.service is not None:
            self._orphans = list(self.service.engine.sequences.values())
        self.election.wiped, self.context.fence = False, ""
        self.consumer.cancel_task_queue(keys.ORCHESTRATOR_QUEUE)
        self.service = None
        self._membership = Membership(self._members, self.context.tell)
        self.lease.update(state=STANDBY, epoch=0)

    def follow_target(self) -> None:
        """Serve the model that is asked for."""
        service = self.service
        try:
            target = self.context.targets.current()
        except IncompatibleVersion as error:  # go on with the target before it
            self._note(str(error))
            return
        except WireError as error:
            self._note(str(error))
            target = None
        if target is None and service is not None:
            self.context.targets.keep(service.target, self.context.fence)
        if target is None or (service is not None and target == service.target):
            return
        served = self._load(target)
        if served is None:
            return
        if service is not None and service.can_follow(target):
            service.follow(target)
            return
        # Redis may fail on the way: change nothing before everything is made, and try again.
        new = ModelService(self.context, self._membership, served, target)
        if service is not None:
            service.engine.suspend()
        self.service, self._served = new, served
        new.sweep()

    def _load(self, target: Target) -> Served | None:
        """The staged model; None if it is not staged."""
        if self._served is not None and self._served.digest == target.model:
            return self._served
        served, problem = Served.staged(self.context.client, target)
        self._note(problem)
        return served

    def _note(self, problem: str) -> None:
        """Say why no model, or an earlier one, is served."""
        if problem and problem != self.problem:
            logger.error("%s", problem)
        self.problem = problem
