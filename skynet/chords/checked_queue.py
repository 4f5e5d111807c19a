"""Reads a worker's queue: what is no message is dropped, with an error.

kombu takes every item of a queue for one of its messages, and Celery every message for a task: at
any other a stock worker ends.
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

import redis

from skynet.store.foreign import delete_foreign, is_wrong_type
from skynet.wire import keys

logger = logging.getLogger(__name__)

# What kombu and Celery raise for fields that are missing or of another type. Errors of a task
# never come this far, and errors of the connection are others.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class CheckedDeliveries:
    """Mixin of a transport.

    reading: an item is being read, and no message is delivered yet.
    """

    channels: Any
    reading = False

    def _deliver(self, message: Any, queue: str) -> None:
        self.reading = False
        try:
            super()._deliver(message, queue)  # type: ignore[misc]
        except MALFORMED as error:
            problem = f"{type(error).__name__}: {error}"
            logger.error("queue %s: dropped %.200r: %s", queue, message, problem)
            self._settle(message)

    def _settle(self, message: Any) -> None:
        """Count a dropped message as done: the worker would wait for it before the next one."""
        try:
            tag = message["properties"]["delivery_tag"]
            for channel in self.channels:
                if tag in channel.qos._delivered:
                    channel.basic_reject(tag, requeue=False)
        except (LookupError, TypeError):
            pass  # it has no tag, and was not counted


class CheckedReads:
    """Mixin of a Redis channel."""

    connection: Any
    active_queues: Any
    pool: Any

    def _brpop_read(self, **options: Any) -> Any:
        self.connection.reading = True
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (ValueError, RecursionError) as error:
            if not self.connection.reading:
                raise
            queues = ", ".join(sorted(self.active_queues))
            logger.error("queue %s: dropped an item that is not JSON: %s", queues, error)
            raise Empty from None
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            plain = redis.Redis(connection_pool=self.pool)  # kombu's adds the prefix
            delete_foreign(plain, {keys.queue_key(name): b"list" for name in self.active_queues})
            raise Empty from None
