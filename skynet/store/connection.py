"""One way to open Redis: deadlines on everything, and errors that hide the password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
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

    It connects on first use, but at once with `single_connection`, which then may raise.

    timeout_s: how long one reply may take; None waits for ever (blocking commands).
    single_connection: one connection for all commands, not a pool.
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

    By a connection of its own: on others a reply may take its time.
    """
    half = settings().connect_timeout_s / 2
    with reachable(url), connect(url, timeout_s=half, connect_timeout_s=half) as probe:
        probe.ping()


def _reason(error: Exception) -> str:
    # redis-py: "Error 111 connecting to host:port. Connection refused."
    return str(error).rstrip(".").rpartition(". ")[2] or type(error).__name__


def broker_url(url: str) -> str:
    """The same server as kombu's transport spells it."""
    return _checked(url).replace("unix://", "redis+socket://", 1)


def backend_url(url: str) -> str:
    """The same server as Celery's Redis result backend spells it, through our subclass."""
    return f"skynet.chords.backend:ChordBackend+{_checked(url).replace('unix://', 'socket://', 1)}"


def _checked(url: str) -> str:
    """A rediss URL that says so in words: Celery wants to be told to check certificates."""
    if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def server_info(client: redis.Redis, section: str) -> dict[str, Any]:
    """INFO of one section, empty where a managed Redis forbids it."""
    try:
        info = client.info(section)
    except redis.ResponseError:
        return {}
    return dict(info)
