"""Opens Redis connections, with deadlines, and errors that hide the password."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from skynet.errors import ClusterUnreachable, ConfigurationError
from skynet.redis_url import RedisURL, hide_password
from skynet.settings import settings
from skynet.store.away import NoDatabase, RedisAway, TranslatesReplies
from skynet.wire import keys


class Connection(TranslatesReplies, redis.Connection):
    """To a server."""


class TLSConnection(TranslatesReplies, redis.SSLConnection):
    """To a server, with TLS."""


class SocketConnection(TranslatesReplies, redis.UnixDomainSocketConnection):
    """To a Unix socket."""


class Sentinels(Sentinel):
    """Redis-py's Sentinels, asked by one thread at a time, without connections between questions.

    Each pool has its own: connections kept open would be several for each connection to Redis.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lock = threading.Lock()

    def discover_master(self, service_name: str) -> Any:
        with self._lock:
            try:
                return super().discover_master(service_name)
            finally:
                self.close()


class AsksSentinels:
    """Mixin: every new socket leads to the master that the Sentinels name at that time.

    Redis-py's class asks them when `connect` is called, and not when a command reopens a lost
    connection: it would try the dead master for ever.
    """

    def __init__(self, *, connection_pool: Any, **options: Any) -> None:
        self.connection_pool = connection_pool  # a proxy of its pool
        super().__init__(**options)

    def _connect(self) -> Any:
        self.host, self.port = self.connection_pool.get_master_address()
        return super()._connect()  # type: ignore[misc]


class MasterConnection(AsksSentinels, Connection):
    """To the master that the Sentinels name."""


class TLSMasterConnection(AsksSentinels, TLSConnection):
    """To that master, with TLS."""


MAX_CONNECTIONS = 2**31  # the server's maxclients is the limit


class Kinds(NamedTuple):
    """redis-py's classes, for calls that block or for an event loop."""

    pool: Any
    sentinel_pool: Any
    sentinel: Any
    retry: Any
    server: Any
    tls: Any
    socket: Any
    master: Any
    tls_master: Any


BLOCKING = Kinds(
    redis.ConnectionPool,
    SentinelConnectionPool,
    Sentinels,
    Retry,
    Connection,
    TLSConnection,
    SocketConnection,
    MasterConnection,
    TLSMasterConnection,
)


def connection_pool(
    url: str | RedisURL,
    *,
    timeout_s: float | None,
    connect_timeout_s: float | None = None,
    kinds: Kinds = BLOCKING,
    **options: Any,
) -> Any:
    """Connections to one Redis, for all clients; opened on first use, no command is repeated.

    timeout_s: maximum wait for the bytes of a reply; None waits for ever.
    options: more of redis-py's connection options.
    """
    at = RedisURL.given(url) if isinstance(url, str) else url
    waits = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s or settings().connect_timeout_s,
    }
    login = {"username": at.username, "password": at.password}
    # redis-py's limit is 100, and each thread that reads an answer holds one.
    options = {"db": at.db, "max_connections": MAX_CONNECTIONS, **login, **waits, **options}
    if at.path:
        return kinds.pool(connection_class=kinds.socket, path=at.path, **options)
    options |= {"socket_keepalive": True, **dict(at.tls or ())}
    if at.master:
        return kinds.sentinel_pool(
            at.master,
            _sentinels(at, waits["socket_connect_timeout"], kinds),
            connection_class=kinds.master if at.tls is None else kinds.tls_master,
            **options,
        )
    ((host, port),) = at.hosts
    kind = kinds.server if at.tls is None else kinds.tls
    return kinds.pool(connection_class=kind, host=host, port=port, **options)


def _sentinels(at: RedisURL, timeout_s: float | None, kinds: Kinds) -> Any:
    tls = {} if at.tls is None else {"ssl": True, **dict(at.tls)}
    return kinds.sentinel(
        at.hosts,
        sentinel_kwargs={
            "username": at.sentinel_username,
            "password": at.sentinel_password,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": kinds.retry(NoBackoff(), 0),
            **tls,
        },
    )


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
    pool = connection_pool(
        url or settings().redis_url,
        timeout_s=timeout_s,
        connect_timeout_s=connect_timeout_s,
        health_check_interval=30,
    )
    client = redis.Redis(connection_pool=pool, single_connection_client=single_connection)
    client.auto_close_connection_pool = True
    return client


@contextmanager
def reachable(url: str | None = None) -> Iterator[None]:
    """Turn redis-py's connection errors into errors of SkyNet that name the URL.

    Raises:
        ClusterUnreachable: Redis does not answer, or cannot serve now.
        ConfigurationError: it has no such database.
    """
    try:
        yield
    except NoDatabase as error:
        raise ConfigurationError(
            f"Redis at {_shown(url)}: {error}; correct SKYNET_REDIS_URL, or raise `databases` "
            "in the server's configuration"
        ) from None
    except RedisAway as error:
        raise ClusterUnreachable(
            f"Redis at {_shown(url)} cannot serve now: {error}; {error.remedy}"
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise ClusterUnreachable(
            f"no answer from Redis at {_shown(url)}: {reason(error)}. "
            "Start it, or set SKYNET_REDIS_URL"
        ) from None


def _shown(url: str | None) -> str:
    return hide_password(url or settings().redis_url)


def ping(url: str | None = None) -> None:
    """Raise ClusterUnreachable unless Redis answers a ping within the connect timeout.

    Opens a new connection: on others a blocking command may delay the reply.
    """
    half = settings().connect_timeout_s / 2
    with reachable(url), connect(url, timeout_s=half, connect_timeout_s=half) as probe:
        probe.ping()


def check_writes(client: redis.Redis) -> None:
    """Raise RedisAway if Redis takes no writes; a replica or a full Redis answers a ping."""
    client.set(keys.probe_key(), 1, xx=True)  # the key does not exist: nothing is written


def reason(error: Exception) -> str:
    """The cause of a connection error, in a few words."""
    if isinstance(error, MasterNotFoundError | AsyncMasterNotFoundError):
        return "no Sentinel answers that names a live master"
    # redis-py: "Error 111 connecting to host:port. Connection refused."
    return str(error).rstrip(".").rpartition(". ")[2] or type(error).__name__


def server_info(client: redis.Redis, section: str) -> dict[str, Any]:
    """INFO of one section; empty if a managed Redis forbids it."""
    try:
        info = client.info(section)
    except redis.ResponseError:
        return {}
    return dict(info)
