"""Opens Redis connections in an event loop, as `connection.py` does for calls that block."""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from skynet.store.away import AsyncTranslatesReplies
from skynet.store.connection import Kinds, connection_pool


class Connection(AsyncTranslatesReplies, redis.asyncio.Connection):
    """To a server."""


class TLSConnection(AsyncTranslatesReplies, redis.asyncio.SSLConnection):
    """To a server, with TLS."""


class SocketConnection(AsyncTranslatesReplies, redis.asyncio.UnixDomainSocketConnection):
    """To a Unix socket."""


class AsksSentinels:
    """As the mixin of `connection.py`."""

    def __init__(self, *, connection_pool: Any, **options: Any) -> None:
        self.connection_pool = connection_pool  # a proxy of its pool
        super().__init__(**options)

    async def _connect(self) -> None:
        self.host, self.port = await self.connection_pool.get_master_address()
        await super()._connect()  # type: ignore[misc]


class MasterConnection(AsksSentinels, Connection):
    """To the master that the Sentinels name."""


class TLSMasterConnection(AsksSentinels, TLSConnection):
    """To that master, with TLS."""


ASYNC = Kinds(
    redis.asyncio.ConnectionPool,
    SentinelConnectionPool,
    Sentinel,
    Retry,
    Connection,
    TLSConnection,
    SocketConnection,
    MasterConnection,
    TLSMasterConnection,
)


def connect_async(url: str, timeout_s: float | None = 30) -> redis.asyncio.Redis:
    """A client for one event loop; connects on first use, and is closed by `close_async`."""
    pool = connection_pool(url, timeout_s=timeout_s, kinds=ASYNC, health_check_interval=30)
    return redis.asyncio.Redis.from_pool(pool)


async def close_async(client: redis.asyncio.Redis) -> None:
    """Close the client's connections, those to Sentinels too."""
    await client.aclose()
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for sentinel in () if manager is None else manager.sentinels:
        await sentinel.aclose()
