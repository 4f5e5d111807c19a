"""Opens Redis connections in an event loop, as `connection.py` does for calls that block."""

from __future__ import annotations

import redis.asyncio
import redis.asyncio.sentinel as sentinels
from redis.asyncio.retry import Retry

from skynet.store.away import AsyncTranslatesReplies
from skynet.store.connection import Kinds, connection_pool


class Connection(AsyncTranslatesReplies, redis.asyncio.Connection):
    """To a server."""


class TLSConnection(AsyncTranslatesReplies, redis.asyncio.SSLConnection):
    """To a server, with TLS."""


class SocketConnection(AsyncTranslatesReplies, redis.asyncio.UnixDomainSocketConnection):
    """To a Unix socket."""


class MasterConnection(AsyncTranslatesReplies, sentinels.SentinelManagedConnection):
    """To the master that the Sentinels name when it connects."""


class TLSMasterConnection(AsyncTranslatesReplies, sentinels.SentinelManagedSSLConnection):
    """To that master, with TLS."""


ASYNC = Kinds(
    redis.asyncio.ConnectionPool,
    sentinels.SentinelConnectionPool,
    sentinels.Sentinel,
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
