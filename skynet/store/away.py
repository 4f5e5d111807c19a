"""Replies by which Redis says that it cannot serve now: a failover, a start, full memory.

Here they become connection errors, for all clients, and the connection is closed. So whatever
waits for a lost connection waits for these too, and connects again, to the new master.
"""

from __future__ import annotations

import re
from typing import Any

import redis

from skynet.store.access import NamesRefusals, refusal, reply_of

MASTER = "wait for the failover to end, or set SKYNET_REDIS_URL to the master"
SHORT = "try again in a moment"

# Code of the reply -> reason and remedy.
REPLIES = {
    "READONLY": ("it is a replica, which takes no writes", MASTER),
    "MASTERDOWN": ("it is a replica that has lost its master", MASTER),
    "UNBLOCKED": ("it was made a replica", MASTER),
    "NOREPLICAS": ("it has too few replicas to take writes", "start them"),
    "LOADING": ("it is loading its data", SHORT),
    "BUSY": ("a script keeps it busy", SHORT),
    "TRYAGAIN": ("it is moving keys", SHORT),
    "CLUSTERDOWN": ("its cluster is down", SHORT),
    "MISCONF": ("it cannot write its data to disk", "see its log"),
}
FULL = "OOM"
NO_DATABASE = "DB index is out of range"

# A Redis before version 7 puts the reply to a command of a script into a message of its own.
_IN_SCRIPT = re.compile(r"Error running script.*-([A-Z]+) ", re.DOTALL)


class RedisAway(redis.ConnectionError):
    """Redis answers, and cannot serve now; `remedy`: what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"  # redis-py's has no message


class RedisFull(RedisAway):
    """Redis has reached its maxmemory and refuses to store more."""

    def __init__(self) -> None:
        remedy = "raise its maxmemory, or remove models: `skynet models` lists them"
        super().__init__("its memory is full (maxmemory)", remedy)


class NoDatabase(redis.ConnectionError):
    """The server has no database of this number."""

    def __init__(self, db: int) -> None:
        super().__init__(f"the server has no database {db}")
        self.db = db


def away(reply: str) -> RedisAway | None:
    """The connection error for an error reply, or None."""
    in_script = _IN_SCRIPT.search(reply)
    code = in_script[1] if in_script else reply.partition(" ")[0]
    if code == FULL:
        return RedisFull()
    return RedisAway(*REPLIES[code]) if code in REPLIES else None


def translated(error: redis.ResponseError, db: int) -> redis.ConnectionError | None:
    """The connection error for an error reply of database `db`, or None."""
    if NO_DATABASE in str(error):
        return NoDatabase(db)
    return away(reply_of(error))


class TranslatesReplies(NamesRefusals):
    """Mixin of redis-py's connections."""

    db: int

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except redis.ResponseError as error:
            away_error = translated(error, self.db)
            if away_error is None:
                raise
            self.disconnect()  # type: ignore[attr-defined]
            raise away_error from error


class AsyncTranslatesReplies:
    """Mixin of redis-py's connections of an event loop."""

    db: Any
    username: str | None

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.ResponseError as error:
            refused = refusal(reply_of(error), "", self.username)
            if refused is not None:
                raise refused from None
            away_error = translated(error, self.db)
            if away_error is None:
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise away_error from error
