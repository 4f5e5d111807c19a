"""A submitted request and its answer: wait for it, stream it, cancel it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import Any, Self, TypeVar

import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from skynet.client.answer_stream import AnswerStream
from skynet.client.connection import ClusterConnection, default_connection
from skynet.client.ends import completion_of, error_of, tokens_of
from skynet.errors import BadRequest, RequestLost, RequestTimeout, SkynetError
from skynet.request.completion import Completion
from skynet.request.option_table import decimal
from skynet.request.option_values import check_integer, check_wait, shown
from skynet.request.record import End, Record, Token
from skynet.store.async_answers import AsyncAnswers
from skynet.store.connection import reachable
from skynet.wire import keys
from skynet.wire.typed_json import parse_object

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 0.1  # between tries while Redis does not answer
GRACE_S = 10.0  # how long after a request's deadline a client still waits for its end


class Generation(AsyncResult):
    """A submitted request: Celery's AsyncResult, with the answer as a stream.

    `Generation(id)` opens a request that any process submitted to `SKYNET_REDIS_URL`, and
    `Client.generation(id)` one of the client's cluster. `with` and `async with` cancel the request
    at their end, unless it has ended.
    """

    def __init__(
        self, id: str, client: ClusterConnection | None = None, deadline: float | None = None
    ) -> None:
        if not isinstance(id, str) or not id:
            raise BadRequest(f"id {shown(id)}: the id of a request, a text")
        if client is not None and not isinstance(client, ClusterConnection):
            raise BadRequest(f"client {type(client).__name__}: a skynet.Client, or None")
        self.client = client or default_connection()
        self._deadline = deadline  # by Redis's clock; None: the record's
        super().__init__(id, app=self.client.app)

    def get(
        self, timeout: float | None = None, propagate: bool = True, **_options: Any
    ) -> Completion:
        """Wait for the complete answer, through restarts of Redis.

        timeout: seconds; until the request's deadline by default.
        propagate: False returns the request's error rather than raise it.
        _options: Celery's other options, without effect: nothing is polled.

        Raises:
            BadRequest: `timeout` is no number of seconds.
            celery.exceptions.TimeoutError: the request is still running after `timeout`.
            ClusterUnreachable: Redis did not answer until then.
            RequestLost: Redis has no record of the request.
            SkynetError: why the request failed, was cancelled or timed out.
        """
        timeout = check_wait(timeout)
        requests = self.client.requests
        with reachable(self.client.url):
            limit = self._time_left() if timeout is None else timeout
            try:
                end = requests.wait_end(self.id, limit)
            except TimeoutError:
                raise self._not_done(timeout) from None
            if not end.error:
                items = list(requests.stream(self.id, 0, GRACE_S))
                return completion_of(items, self._record())
        if propagate:
            raise error_of(end)
        return error_of(end)  # type: ignore[return-value]  # as Celery does it

    wait = get

    async def aget(self, timeout: float | None = None) -> Completion:
        """As `get`, in a coroutine; `await generation` is the same.

        If the coroutine is cancelled, as by `asyncio.wait_for`, the request continues.
        """
        timeout = check_wait(timeout)
        with reachable(self.client.url):
            async with self.client.async_answers() as answers:
                limit = await self._async_time_left(answers) if timeout is None else timeout
                try:
                    end = await answers.end(self.id, limit)
                except TimeoutError:
                    raise self._not_done(timeout) from None
                if end.error:
                    raise error_of(end)
                items = await answers.answer(self.id, GRACE_S)
                return completion_of(items, await answers.record(self.id, GRACE_S))

    def __await__(self) -> Generator[Any, None, Completion]:
        return self.aget().__await__()

    @property
    def completion(self) -> Completion | None:
        """The answer if the request has ended with one; does not wait."""
        return Completion.of(self.result) if self.successful() else None

    def tokens(self, start: int = 0, timeout: float | None = None) -> AnswerStream[Token]:
        """Tokens from index `start` on, as they are generated, for `for` and `async for`. Any
        process may read them, any number of times.

        timeout: longest wait for the next token, seconds; until the request's deadline by default.

        Raises:
            BadRequest: `start` or `timeout` is no number in its range.

        The iteration raises:
            TimeoutError: no token in time.
            ClusterUnreachable: Redis did not answer for as long.
            RequestLost: Redis has no record of the request.
            SkynetError: why the request failed, was cancelled or timed out.
        """
        start, timeout = check_integer("start", start, 0), check_wait(timeout)
        return AnswerStream(
            lambda: self._tokens(start, timeout), lambda: self._async_tokens(start, timeout)
        )

    atokens = tokens

    def stream(self, start: int = 0, timeout: float | None = None) -> AnswerStream[str]:
        """The text in pieces, as it is generated; arguments and errors as of `tokens`."""
        tokens = self.tokens(start, timeout)

        def pieces() -> Generator[str]:
            with closing(tokens):
                yield from (token.text for token in tokens if token.text)

        async def async_pieces() -> AsyncGenerator[str]:
            async with aclosing(tokens):
                async for token in tokens:
                    if token.text:
                        yield token.text

        return AnswerStream(pieces, async_pieces)

    def _tokens(self, start: int, timeout: float | None) -> Generator[Token]:
        with reachable(self.client.url):
            limit = self._time_left() if timeout is None else timeout
            try:
                for item in self.client.requests.stream(self.id, start, limit):
                    yield from tokens_of(item)
            except TimeoutError as error:
                raise self._no_token(error, timeout) from None

    async def _async_tokens(self, start: int, timeout: float | None) -> AsyncGenerator[Token]:
        async with aclosing(self.items(start, timeout)) as items:
            async for item in items:
                for token in tokens_of(item):
                    yield token

    def annotations(self) -> dict[str, Any]:
        """What `submit_prompt` was given as `annotations`; {} if nothing.

        Raises:
            RequestLost: Redis has no record of the request.
        """
        with reachable(self.client.url):
            if (record := self._record()) is None:
                raise RequestLost(f"request {self.id} is not in Redis: it expired, or never was")
            return parse_object(record.annotations or "{}", "annotations")

    async def items(
        self, start: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[Token | End]:
        """Tokens from index `start` on as they are generated, then the end, which may be an error.

        timeout: as of `tokens`.

        Raises:
            ClusterUnreachable: Redis did not answer until the request's deadline.
            RequestLost: Redis has no record of the request.
            RequestTimeout: no end until the request's deadline.
        """
        with reachable(self.client.url):
            async with self.client.async_answers() as answers:
                limit = await self._async_time_left(answers) if timeout is None else timeout
                try:
                    async with aclosing(answers.tokens(self.id, start, limit)) as items:
                        async for item in items:
                            yield item
                except TimeoutError as error:
                    raise self._no_token(error, timeout) from None

    def cancel(self) -> bool:
        """Cancel the request at the next step; False if it has ended already."""
        with reachable(self.client.url):
            is_open = self.client.requests.ask_cancel(self.id)
            if is_open:
                self.client.send(keys.CANCEL_TASK, (self.id,))
            return is_open

    async def acancel(self) -> bool:
        """As `cancel`, in a coroutine: for a moment in a thread of the event loop's pool."""
        return await asyncio.to_thread(self.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self.cancel()
        except SkynetError as error:  # the block's own exception, if any, counts
            logger.warning(
                "request %s was not cancelled, it continues until its deadline: %s", self.id, error
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await asyncio.to_thread(self.__exit__)

    def _time_left(self) -> float:
        """Seconds until `GRACE_S` after the deadline, by Redis's clock."""
        if self._deadline is None:
            record = self._record()
            self._deadline = record.deadline if record else 0.0
        return GRACE_S + max(0.0, self._deadline - _patiently(self.client.requests.now))

    async def _async_time_left(self, answers: AsyncAnswers) -> float:
        """As `_time_left`."""
        if self._deadline is None:
            record = await answers.record(self.id, GRACE_S)
            self._deadline = record.deadline if record else 0.0
        now = await answers.now(self.client.requests.clock, GRACE_S)
        return GRACE_S + max(0.0, self._deadline - now)

    def record(self) -> Record | None:
        """The request as it is in Redis; None if it is not there any more."""
        with reachable(self.client.url):
            return self._record()

    def _record(self) -> Record | None:
        return _patiently(lambda: self.client.requests.read(self.id))

    def _not_done(self, timeout: float | None) -> Exception:
        """The error of `get`, after `timeout` or the deadline."""
        if timeout is None:
            return self._no_end()
        return CeleryTimeoutError(f"request {self.id} is not done after {decimal(timeout)} s")

    def _no_token(self, error: TimeoutError, timeout: float | None) -> TimeoutError:
        """The error of `tokens`, after `timeout` or the deadline."""
        return error if isinstance(error, RequestTimeout) or timeout is not None else self._no_end()

    def _no_end(self) -> RequestTimeout:
        return RequestTimeout(
            f"request {self.id} has not ended {GRACE_S:g} s after its deadline: is an orchestrator "
            "running? Start one with `celery -A skynet worker -Q orchestrator`"
        )


def _patiently(query: Callable[[], T]) -> T:
    """The query's result; it is repeated for `GRACE_S` while Redis does not answer."""
    give_up = time.monotonic() + GRACE_S
    while True:
        try:
            return query()
        except (redis.ConnectionError, redis.TimeoutError):
            if time.monotonic() > give_up:
                raise
            time.sleep(RETRY_S)
