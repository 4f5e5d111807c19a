"""Messages to the leading orchestrator: the work of its Celery tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import redis

from skynet import errors
from skynet.errors import Fenced, NotFinite, StepFailed, WireError
from skynet.orchestrator.leader import Leader
from skynet.wire import keys
from skynet.wire.step import Part, SpanMessage

logger = logging.getLogger(__name__)


class Messages:
    """One method per task."""

    def __init__(self, leader: Leader) -> None:
        self.leader = leader

    def handle(self, name: str, *arguments: Any) -> None:
        """Call the method of this name: `accept`, `cancel`, `finish_step` or `fail_step`.

        An error must not leave the task: Celery would store it as the request's result. A lost
        message is made up for by the request's record or the step's deadline.
        """
        try:
            getattr(self, name)(*arguments)
        except Fenced:
            self.leader.lose()
        except WireError as error:
            logger.error("%s: a message was dropped: %s", name, error)
        except redis.RedisError as error:
            logger.warning("%s: Redis: %s", name, error)
            self.leader.context.redis_away = True

    def accept(self, request_id: str) -> None:
        """Accept a request whose record is written; without a model a later sweep does."""
        service = self.leader.service
        if service is not None:
            service.intake.accept(service.engine, request_id)

    def cancel(self, request_id: str) -> None:
        if self.leader.service is not None:
            self.leader.service.engine.cancel(request_id)

    def finish_step(
        self, parts: Sequence[bytes], epoch: int, step: int, spent_s: float, plan_id: str = ""
    ) -> None:
        """All shards' parts of a step.

        Raises:
            WireError: the message or a part is malformed.
        """
        SpanMessage(epoch, step, 0, 0).check()
        service = self.leader.service
        if self._is_for_next_leader(epoch):
            self._give_back(keys.FINISH_STEP_TASK, [list(parts), epoch, step, 0, spent_s, plan_id])
        elif service is None or epoch != self.leader.epoch:
            logger.debug("step %d is of epoch %d, dropped", step, epoch)
        elif self._is_own_plan(step, plan_id):
            # Parts of another epoch may be of another protocol, too: only these are decoded.
            decoded = [Part.decode(part) for part in parts]
            service.engine.finish_step(epoch, step, decoded, spent_s)

    def fail_step(
        self,
        epoch: int,
        step: int,
        kind: str,
        message: str,
        rows: Sequence[int] = (),
        plan_id: str = "",
    ) -> None:
        """A shard could not compute its part of a step; rows: those with NaN or infinity.

        Raises:
            WireError: the message is malformed.
        """
        SpanMessage(epoch, step, 0, 0).check()
        if not isinstance(message, str) or not _are_numbers(rows):
            raise WireError(f"step {step}: the error {message!r:.80} of rows {rows!r:.80} is none")
        service = self.leader.service
        if self._is_for_next_leader(epoch):
            self._give_back(keys.FAIL_STEP_TASK, [epoch, step, kind, message, list(rows), plan_id])
        elif service is not None and self._is_own_plan(step, plan_id):
            service.engine.fail_step(epoch, step, _failure(str(kind), message, rows))

    def _is_own_plan(self, step: int, plan_id: str) -> bool:
        """False for a message of another cluster, whose plan has the same epoch."""
        service = self.leader.service
        own = "" if service is None else service.engine.plan.id
        if plan_id in ("", own):  # "": of an earlier version
            return True
        logger.info("step %d is of plan %r, not of %r: of another cluster", step, plan_id, own)
        return False

    def _give_back(self, task: str, arguments: list[Any]) -> None:
        messenger = self.leader.context.app.messenger
        messenger.give_back(task, arguments, keys.ORCHESTRATOR_QUEUE)

    def _is_for_next_leader(self, epoch: int) -> bool:
        """Whether the message belongs to a plan of a later leader; then this one steps down."""
        leader = self.leader
        if leader.service is not None and epoch <= leader.epoch:
            return False
        fence = leader.context.fence
        if fence and leader.election.leadership.holder() == fence:
            return False  # stale, of an earlier leader
        leader.lose()
        return True


def _are_numbers(rows: Any) -> bool:
    return isinstance(rows, list | tuple) and all(type(row) is int for row in rows)


def _failure(kind: str, message: str, rows: Sequence[int]) -> StepFailed:
    """The error of a shard, of a class by its name."""
    cls = getattr(errors, kind, StepFailed)
    if cls is NotFinite:
        return NotFinite(message, tuple(rows))
    if not (isinstance(cls, type) and issubclass(cls, StepFailed)):
        cls = StepFailed
    return cls(message)
