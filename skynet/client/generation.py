"""A submitted request and its answer: wait for it, stream it, cancel it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from skynet import errors
from skynet.client.connection import ClusterConnection, default_connection
from skynet.errors import RequestTimeout, SkynetError
from skynet.request.completion import Completion
from skynet.request.record import End, Record, Token
from skynet.store.connection import reachable
from skynet.wire import keys

T = TypeVar("T")

RETRY_S = 0.1  # between tries while Redis does not answer
GRACE_S = 10.0  # how long after a request's deadline a client still waits for its end


class Generation(AsyncResult):
    """A submitted request: Celery's AsyncResult, with the answer as a stream.

    `Generation(id)` opens a request that any process submitted.
    """

    def __init__(
        self, id: str, client: ClusterConnection | None = None, deadline: float | None = None
    ) -> None:
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
            celery.exceptions.TimeoutError: the request is still running after `timeout`.
            ClusterUnreachable: Redis did not answer until then.
            RequestLost: Redis has no record of the request.
            SkynetError: why the request failed, was cancelled or timed out.
        """
        requests = self.client.requests
        with reachable(self.client.url):
            limit = self._time_left() if timeout is None else timeout
            try:
                end = requests.wait_end(self.id, limit)
            except TimeoutError:
                if timeout is None:
                    raise RequestTimeout(self._no_end_message()) from None
                raise CeleryTimeoutError(
                    f"request {self.id} is not done after {timeout:g} s"
                ) from None
            if not end.error:
                return self._completion_of(end)
        if propagate:
            raise _error_of(end)
        return _error_of(end)  # type: ignore[return-value]  # as Celery does it

    wait = get

    def _completion_of(self, end: End) -> Completion:
        """The completion of a request that ended without an error."""
        items = self.client.requests.stream(self.id, 0, GRACE_S)
        tokens = [item for item in items if isinstance(item, Token)]
        record = self._record()
        return Completion(
            text="".join(token.text for token in tokens) + end.text,
            token_ids=[token.id for token in tokens],
            prompt_tokens=len(record.prompt) if record else 0,
            finish_reason=end.finish_reason,
            timings=end.timings,
            logprobs=[token.logprobs.as_dict() for token in tokens if token.logprobs],
            **end.answer,
        )

    @property
    def completion(self) -> Completion | None:
        """The answer if the request has ended with one; does not wait."""
        return Completion(**self.result) if self.successful() else None

    def tokens(self, start: int = 0, timeout: float | None = None) -> Iterator[Token]:
        """Tokens from index `start` on, as they are generated. Any process may read them, any
        number of times.

        timeout: longest wait for the next token, seconds; until the request's deadline by default.

        Raises:
            TimeoutError: no token in time.
            ClusterUnreachable: Redis did not answer for as long.
            RequestLost: Redis has no record of the request.
            SkynetError: why the request failed, was cancelled or timed out.
        """
        with reachable(self.client.url):
            limit = self._time_left() if timeout is None else timeout
            for item in self._stream(start, limit, until_deadline=timeout is None):
                if isinstance(item, Token):
                    yield item
                else:
                    yield from _last(item)

    def _stream(self, start: int, limit: float, until_deadline: bool) -> Iterator[Token | End]:
        try:
            yield from self.client.requests.stream(self.id, start, limit)
        except TimeoutError:
            if until_deadline:
                raise RequestTimeout(self._no_end_message()) from None
            raise

    def stream(self, start: int = 0, timeout: float | None = None) -> Iterator[str]:
        """The text in pieces, as it is generated; arguments and errors as of `tokens`."""
        for token in self.tokens(start, timeout):
            if token.text:
                yield token.text

    def cancel(self) -> bool:
        """Cancel the request at the next step; False if it has ended already."""
        with reachable(self.client.url):
            is_open = self.client.requests.ask_cancel(self.id)
            if is_open:
                self.client.send(keys.CANCEL_TASK, (self.id,))
            return is_open

    def __await__(self) -> Generator[Any, None, Completion]:
        return asyncio.to_thread(self.get).__await__()

    def _time_left(self) -> float:
        """Seconds until `GRACE_S` after the deadline, by Redis's clock."""
        if self._deadline is None:
            record = self._record()
            self._deadline = record.deadline if record else 0.0
        return GRACE_S + max(0.0, self._deadline - _patiently(self.client.requests.now))

    def _record(self) -> Record | None:
        return _patiently(lambda: self.client.requests.read(self.id))

    def _no_end_message(self) -> str:
        return (
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


def _last(end: End) -> Iterator[Token]:
    """The text that was held back, as a token without an id; raises the request's error."""
    if end.error:
        raise _error_of(end)
    if end.text:
        yield Token(-1, -1, end.text)


def _error_of(end: End) -> SkynetError:
    cls = getattr(errors, end.error, SkynetError)
    known = isinstance(cls, type) and issubclass(cls, SkynetError)
    error: SkynetError = (cls if known else SkynetError)(end.message)
    return error
