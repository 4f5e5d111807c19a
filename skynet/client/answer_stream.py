"""An answer piece by piece, for `for` and for `async for`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class AnswerStream(Iterator[T], AsyncIterator[T], Generic[T]):
    """Iterates over the pieces of an answer once, with `for` or with `async for`.

    `async for` needs no thread: all streams of an event loop share a connection.
    """

    def __init__(
        self,
        blocking: Callable[[], Generator[T]],
        asynchronous: Callable[[], AsyncGenerator[T]],
    ) -> None:
        self._start_blocking = blocking
        self._start_async = asynchronous
        self._blocking: Generator[T] | None = None
        self._async: AsyncGenerator[T] | None = None

    def __iter__(self) -> AnswerStream[T]:
        return self

    def __next__(self) -> T:
        if self._blocking is None:
            self._blocking = self._start_blocking()
        return next(self._blocking)

    def __aiter__(self) -> AnswerStream[T]:
        return self

    async def __anext__(self) -> T:
        if self._async is None:
            self._async = self._start_async()
        return await anext(self._async)

    def close(self) -> None:
        """End a `for` early; the request continues."""
        if self._blocking is not None:
            self._blocking.close()

    async def aclose(self) -> None:
        """End an `async for` early; the request continues."""
        if self._async is not None:
            await self._async.aclose()
