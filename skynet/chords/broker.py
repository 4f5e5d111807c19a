"""The broker connection of a worker: what is no message in a queue is dropped, with an error.

kombu takes every item of a queue for one of its messages, and Celery every message for a task: at
any other a stock worker ends.
"""

from __future__ import annotations

import logging
from functools import cache
from queue import Empty
from typing import Any

import kombu
import redis

from skynet.store.foreign import delete_foreign, is_wrong_type

logger = logging.getLogger(__name__)

# What kombu and Celery raise for fields that are missing or of another type. Errors of a task
# never come this far, and errors of the connection are others.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class CheckedConnection(kombu.Connection):
    """kombu's connection with a transport that survives malformed items, whatever its URL."""

    def get_transport_cls(self) -> type:
        return _checked(super().get_transport_cls())


@cache
def _checked(transport: type) -> type:
    """The transport with checks; brokers other than Redis are left alone."""
    channel: Any = transport.Channel  # type: ignore[attr-defined]
    if not hasattr(channel, "_brpop_read"):
        return transport
    checked = type(channel.__name__, (CheckedReads, channel), {})
    return type(transport.__name__, (CheckedDeliveries, transport), {"Channel": checked})


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
            with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
                delete_foreign(client, dict.fromkeys(self.active_queues, b"list"))
            raise Empty from None
