"""Messages to the leading orchestrator: the work of its Celery tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import redis

from skynet import errors
from skynet.errors import Fenced, NotFinite, StepFailed
from skynet.orchestrator.leader import Leader
from skynet.wire import keys
from skynet.wire.step import Part

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

    def finish_step(self, parts: Sequence[bytes], epoch: int, step: int, spent_s: float) -> None:
        if self._is_for_next_leader(epoch):
            self._give_back(keys.FINISH_STEP_TASK, [list(parts), epoch, step, 0, spent_s])
        elif self.leader.service is not None and epoch == self.leader.epoch:
            # Parts of an earlier epoch, and maybe of another protocol, are stale: not even decoded.
            decoded = [Part.decode(part) for part in parts]
            self.leader.service.engine.finish_step(epoch, step, decoded, spent_s)

    def fail_step(
        self, epoch: int, step: int, kind: str, message: str, rows: Sequence[int] = ()
    ) -> None:
        if self._is_for_next_leader(epoch):
            self._give_back(keys.FAIL_STEP_TASK, [epoch, step, kind, message, list(rows)])
        elif self.leader.service is not None:
            self.leader.service.engine.fail_step(epoch, step, _failure(kind, message, rows))

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


def _failure(kind: str, message: str, rows: Sequence[int]) -> StepFailed:
    """The error of a shard, of a class by its name."""
    cls = getattr(errors, kind, StepFailed)
    if cls is NotFinite:
        return NotFinite(message, tuple(rows))
    if not (isinstance(cls, type) and issubclass(cls, StepFailed)):
        cls = StepFailed
    return cls(message)
