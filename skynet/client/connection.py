"""The connection of a client to one cluster: its Redis and its Celery app."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from skynet.errors import CommandRefused
from skynet.settings import settings
from skynet.store.connection import connect, reachable
from skynet.store.requests import Requests
from skynet.wire import keys

if TYPE_CHECKING:
    from celery import Celery


class ClusterConnection:
    """Redis and Celery of one cluster, connected at the first use.

    url: its Redis; `SKYNET_REDIS_URL` by default.
    lazy: read the settings at the first use, too.

    Raises:
        ConfigurationError: a setting has an invalid value, unless `lazy`.
    """

    def __init__(self, url: str | None = None, *, lazy: bool = False) -> None:
        self._given_url = url
        if not lazy:
            _ = self.requests  # refuses an invalid setting or URL; does not connect

    @cached_property
    def url(self) -> str:
        return self._given_url or settings().redis_url

    @cached_property
    def redis(self) -> Redis:
        return connect(self.url)

    @cached_property
    def requests(self) -> Requests:
        """The records of requests."""
        return Requests(self.redis, settings().result_expires_s)

    @cached_property
    def app(self) -> Celery:
        """A Celery app with this cluster's broker and result backend."""
        from skynet.chords.app import SkynetCelery

        app = SkynetCelery("skynet")
        app.use(self.url)
        return app

    def send(self, task: str, arguments: tuple[str, ...] = (), **options: Any) -> None:
        """Send a task to the orchestrator.

        Raises:
            ClusterUnreachable: Redis did not take it.
        """
        with reachable(self.url):
            try:
                self.app.send_task(task, arguments, queue=keys.ORCHESTRATOR_QUEUE, **options)
            except OperationalError as error:
                cause = error.__cause__
                if isinstance(cause, RedisConnectionError | CommandRefused):
                    raise cause from None  # it says more
                raise RedisConnectionError(str(error)) from error

    def close(self) -> None:
        """Close the connections that are open."""
        if "app" in self.__dict__:
            self.app.close()
        if "redis" in self.__dict__:
            self.redis.close()


@lru_cache(maxsize=1)
def default_connection() -> ClusterConnection:
    """The connection to `SKYNET_REDIS_URL`, for generations that are opened by their id alone."""
    return ClusterConnection()
