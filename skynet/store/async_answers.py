"""Reads any number of answers in one event loop, over two connections and without threads.

One XREAD waits for the streams of all readers; commands that do not block go through the other
connection, in pipelines. The answers are those of `AnswerReader`, through restarts of Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, cast

import redis
import redis.asyncio

from skynet.errors import SkynetError
from skynet.request.record import End, Record, Token
from skynet.store.answer import POLL_S, RETRY_S
from skynet.store.answer_cursor import (
    PROGRESS_FIELDS,
    Cursor,
    TokenCursor,
    entries_by_key,
    no_token,
)
from skynet.store.async_connection import close_async
from skynet.store.async_queries import AWAY, AsyncQueries
from skynet.store.clock import RedisClock
from skynet.wire import keys

JOIN_S = 0.02  # longest that a blocked XREAD goes on without a stream that has joined


class AsyncAnswers:
    """The answers that one event loop reads. `close` after the last use."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self._readers: list[_Reader] = []
        self._task: asyncio.Task[None] | None = None
        self._blocked: asyncio.Timeout | None = None  # around an XREAD
        self._queries = AsyncQueries(client)  # commands that do not block
        self._error: redis.RedisError | None = None  # while Redis is away

    async def close(self) -> None:
        """Close the connections."""
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
        finally:
            await close_async(self.client)

    def tokens(
        self, request_id: str, start: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Token | End]:
        """As `Requests.stream`: each token once and in order, then the end."""
        return self._items(TokenCursor(request_id, start), timeout_s)

    async def end(self, request_id: str, timeout_s: float | None = None) -> End:
        """As `Requests.wait_end`: the end only."""
        async with aclosing(self._items(Cursor(request_id), timeout_s)) as items:
            return cast(End, await anext(items))

    async def answer(self, request_id: str, patience_s: float) -> list[Token | End]:
        """The whole answer to a request that has ended, in one reply."""
        key, cursor = keys.tokens_key(request_id), TokenCursor(request_id)
        items = list(
            cursor.take(await self._queries.ask(lambda pipe: pipe.xrange(key), patience_s))
        )
        if items and isinstance(items[-1], End):
            return items
        # Redis has restarted with less of it: it is written again.
        return [item async for item in self.tokens(request_id, 0, patience_s)]

    async def record(self, request_id: str, patience_s: float) -> Record | None:
        """As `Requests.read`; waits for Redis as long as `patience_s`."""
        key = keys.request_key(request_id)
        fields = await self._queries.ask(lambda pipe: pipe.hgetall(key), patience_s)
        return Record.from_fields(request_id, fields) if b"prompt" in fields else None

    async def now(self, clock: RedisClock, patience_s: float) -> float:
        """As `RedisClock.now`; waits for Redis as long as `patience_s`."""
        if (known := clock.known()) is not None:
            return known
        before = time.monotonic()
        return clock.compare(await self._queries.ask(lambda pipe: pipe.time(), patience_s), before)

    async def _items(self, cursor: Cursor, timeout_s: float | None) -> AsyncGenerator[Token | End]:
        reader = self._join(_Reader(cursor, timeout_s))
        try:
            while True:
                item = await self._next(reader)
                yield item
                if isinstance(item, End):
                    return
        finally:
            if reader in self._readers:
                self._readers.remove(reader)

    def _join(self, reader: _Reader) -> _Reader:
        self._readers.append(reader)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read())
        elif self._blocked is not None and self._blocked.when() is None:
            self._blocked.reschedule(asyncio.get_running_loop().time() + JOIN_S)
        return reader

    async def _next(self, reader: _Reader) -> Token | End:
        try:
            async with asyncio.timeout(reader.timeout_s):
                item = await reader.items.get()
        except TimeoutError:
            await reader.looked.wait()  # as long as one XREAD, if the timeout is shorter
            if reader.items.empty():
                raise self._error or no_token(reader.cursor.id, reader.timeout_s) from None
            item = reader.items.get_nowait()
        if isinstance(item, BaseException):
            raise item
        return item

    async def _read(self) -> None:
        """Read the streams of all readers until none is left."""
        try:
            while self._readers:
                try:
                    await self._read_once()
                    self._error = None
                except AWAY as error:
                    self._lost(error)
                    await asyncio.sleep(RETRY_S)
        except BaseException as error:  # nobody else would tell the readers
            for reader in self._readers:
                reader.fail(error)
            if not isinstance(error, Exception):
                raise

    async def _read_once(self) -> None:
        readers = list(self._readers)
        replies = await self._entries(readers)
        if replies is None:
            return
        for reader in readers:
            if entries := replies.get(reader.cursor.key.encode()):
                reader.put(reader.cursor.take(entries))
        await self._look_at_silent(readers)
        for reader in readers:
            reader.looked.set()
        self._readers = [reader for reader in self._readers if not reader.ended]

    async def _entries(self, readers: list[_Reader]) -> dict[bytes, Any] | None:
        """New entries by stream; None if a stream has joined meanwhile.

        Redis cannot add a stream to a blocked XREAD. To cancel the command closes its connection,
        and loses nothing: entries are read again from the same place.
        """
        streams: dict[str, bytes] = {}
        for reader in readers:
            key, last = reader.cursor.key, reader.cursor.last
            streams[key] = min(streams.get(key, last), last, key=_order)
        waits = [reader.timeout_s for reader in readers if reader.timeout_s is not None]
        block_ms = max(1, int(min([POLL_S, *waits]) * 1000))
        try:
            async with asyncio.timeout(None) as self._blocked:
                replies = await self.client.xread(cast(Any, streams), count=256, block=block_ms)
        except TimeoutError:
            return None
        finally:
            self._blocked = None
        return entries_by_key(replies)

    async def _look_at_silent(self, readers: list[_Reader]) -> None:
        """Compare readers without news with their requests' records."""
        now = time.monotonic()
        silent = [reader for reader in readers if now - reader.heard >= POLL_S and not reader.ended]
        if not silent:
            return
        async with self.client.pipeline(transaction=False) as pipe:
            for reader in silent:
                pipe.hmget(keys.request_key(reader.cursor.id), PROGRESS_FIELDS)
            records = await pipe.execute()
        for reader, fields in zip(silent, records, strict=True):
            reader.put(reader.cursor.progressed(*fields))

    def _lost(self, error: redis.RedisError) -> None:
        """Redis is away: readers wait until their time is over."""
        self._error = error
        for reader in self._readers:
            reader.cursor.restart()
            reader.looked.set()
            if isinstance(error, redis.AuthenticationError):
                reader.fail(error)


class _Reader:
    """One reader of one answer: what it has not taken yet, at most the answer.

    heard: when Redis had something for it, or its record was read.
    looked: Redis was asked for it at least once.
    ended: nothing more will come.
    """

    def __init__(self, cursor: Cursor, timeout_s: float | None) -> None:
        self.cursor = cursor
        self.timeout_s = timeout_s
        self.items: asyncio.Queue[Token | End | BaseException] = asyncio.Queue()
        self.heard = float("-inf")
        self.looked = asyncio.Event()
        self.ended = False

    def put(self, items: Iterable[Token | End]) -> None:
        self.heard = time.monotonic()
        try:
            for item in items:
                self.items.put_nowait(item)
                self.ended = isinstance(item, End)
        except SkynetError as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        self.items.put_nowait(error)
        self.looked.set()
        self.ended = True


def _order(entry: bytes) -> tuple[int, int]:
    """The order of entry ids, `milliseconds-sequence`."""
    first, _, second = entry.partition(b"-")
    return int(first), int(second or 0)
