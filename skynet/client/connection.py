"""The connection of a client to one cluster: its Redis and its Celery app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from skynet.errors import BadRequest, CommandRefused, ConfigurationError
from skynet.redis_url import RedisURL
from skynet.request.option_values import shown
from skynet.settings import settings
from skynet.store.async_answers import AsyncAnswers
from skynet.store.async_connection import connect_async
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
        ConfigurationError: the URL or a setting has an invalid value, unless `lazy`.
    """

    def __init__(self, url: str | None = None, *, lazy: bool = False) -> None:
        if url is not None and not isinstance(url, str):
            raise BadRequest(f"url {shown(url)}: a Redis URL, or None for SKYNET_REDIS_URL")
        self._given_url = url
        # By event loop, with its number of uses: connections belong to a loop.
        self._async_answers: dict[asyncio.AbstractEventLoop, tuple[AsyncAnswers, int]] = {}
        if not lazy:
            _ = self.requests  # refuses an invalid setting or URL; does not connect

    @cached_property
    def url(self) -> str:
        if self._given_url is None:
            return settings().redis_url
        try:
            RedisURL.parse(self._given_url)
        except ValueError as error:  # shows no password
            raise ConfigurationError(f"url: {error}") from None
        return self._given_url

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

    @asynccontextmanager
    async def async_answers(self) -> AsyncIterator[AsyncAnswers]:
        """The answers' reader of the running event loop. It is closed after its last use."""
        loop = asyncio.get_running_loop()
        answers, uses = self._async_answers.get(loop) or (AsyncAnswers(connect_async(self.url)), 0)
        self._async_answers[loop] = (answers, uses + 1)
        try:
            yield answers
        finally:
            uses = self._async_answers[loop][1] - 1
            self._async_answers[loop] = (answers, uses)
            if not uses:
                del self._async_answers[loop]
                await answers.close()

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
