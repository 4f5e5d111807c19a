"""Opens Redis connections, with deadlines, and errors that hide the password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from skynet.errors import ClusterUnreachable
from skynet.settings import hide_password, settings


def connect(
    url: str | None = None,
    *,
    timeout_s: float | None = 30,
    connect_timeout_s: float | None = None,
    single_connection: bool = False,
) -> redis.Redis:
    """A client of the Redis at `url` (default: `SKYNET_REDIS_URL`).

    Connects on first use; with `single_connection` at once, which may raise.

    timeout_s: maximum wait for a reply; None waits for ever (blocking commands).
    single_connection: one connection for all commands instead of a pool.
    """
    current = settings()
    return redis.Redis.from_url(
        url or current.redis_url,
        socket_timeout=timeout_s,
        socket_connect_timeout=connect_timeout_s or current.connect_timeout_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=30,
        single_connection_client=single_connection,
    )


def connect_async(url: str | None = None, *, timeout_s: float | None = 30) -> redis.asyncio.Redis:
    """As `connect`, for one event loop."""
    current = settings()
    return redis.asyncio.Redis.from_url(
        url or current.redis_url,
        socket_timeout=timeout_s,
        socket_connect_timeout=current.connect_timeout_s,
        retry=AsyncRetry(NoBackoff(), 0),
        health_check_interval=30,
    )


@contextmanager
def reachable(url: str | None = None) -> Iterator[None]:
    """Turn redis-py's connection errors into a ClusterUnreachable that names the URL."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise ClusterUnreachable(
            f"no answer from Redis at {hide_password(url or settings().redis_url)}: "
            f"{_reason(error)}. Start it, or set SKYNET_REDIS_URL"
        ) from None


def ping(url: str | None = None) -> None:
    """Raise ClusterUnreachable unless Redis answers a ping within the connect timeout.

    Opens a new connection: on others a blocking command may delay the reply.
    """
    half = settings().connect_timeout_s / 2
    with reachable(url), connect(url, timeout_s=half, connect_timeout_s=half) as probe:
        probe.ping()


def _reason(error: Exception) -> str:
    # redis-py: "Error 111 connecting to host:port. Connection refused."
    return str(error).rstrip(".").rpartition(". ")[2] or type(error).__name__


def broker_url(url: str) -> str:
    """The URL in the form of kombu's transport."""
    return _checked(url).replace("unix://", "redis+socket://", 1)


def backend_url(url: str) -> str:
    """The URL in the form of Celery's result backends, with SkyNet's subclass."""
    return f"skynet.chords.backend:ChordBackend+{_checked(url).replace('unix://', 'socket://', 1)}"


def _checked(url: str) -> str:
    """Celery requires rediss URLs to say whether certificates are checked: they are."""
    if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def server_info(client: redis.Redis, section: str) -> dict[str, Any]:
    """INFO of one section; empty if a managed Redis forbids it."""
    try:
        info = client.info(section)
    except redis.ResponseError:
        return {}
    return dict(info)
