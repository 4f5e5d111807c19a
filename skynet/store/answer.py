"""Reads an answer while it is generated, through restarts of Redis, with a blocking connection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import redis

from skynet.request.record import End, Token
from skynet.store.answer_cursor import (
    PROGRESS_FIELDS,
    Cursor,
    Entry,
    TokenCursor,
    entries_by_key,
    no_token,
)
from skynet.wire import keys

POLL_S = 1.0  # longest blocking read
RETRY_S = 0.1  # between tries while Redis is unreachable


class AnswerReader:
    """One reader of one request's answer.

    timeout_s: maximum wait for the next token or the end; None waits for ever.
    """

    def __init__(self, client: redis.Redis, request_id: str, timeout_s: float | None) -> None:
        self.client = client
        self.id = request_id
        self.timeout_s = timeout_s
        self._since = time.monotonic()

    def tokens(self, start: int) -> Iterator[Token | End]:
        """Each token from index `start` once and in order, then the end.

        Raises:
            TimeoutError, RequestLost, redis.RedisError: see `Requests.stream`.
            SkynetError: tokens are missing in Redis.
        """
        return self._items(TokenCursor(self.id, start))

    def end(self) -> End:
        """Wait for the end, without a wake-up for each token. Errors as of `tokens`."""
        return cast(End, next(self._items(Cursor(self.id))))

    def _items(self, cursor: Cursor) -> Iterator[Token | End]:
        self._since = time.monotonic()
        while True:
            try:
                entries = self._read(cursor)
                progress = () if entries else self._progress()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                self._wait_for_redis(error)
                cursor.restart()
                continue
            for item in cursor.take(entries) if entries else cursor.progressed(*progress):
                yield item
                if isinstance(item, End):
                    return
                self._since = time.monotonic()  # the caller's time does not count
            if not entries and not cursor.rereads:
                self._check_time()

    def _read(self, cursor: Cursor) -> list[Entry]:
        """Entries after the cursor's last; none if none comes within POLL_S."""
        block_ms = max(1, int(min(POLL_S, self._time_left()) * 1000))
        replies = self.client.xread({cursor.key: cursor.last}, count=256, block=block_ms)
        return entries_by_key(replies).get(cursor.key.encode(), [])

    def _progress(self) -> tuple[bytes | None, bytes | None]:
        """The record's number of tokens, and its end."""
        fields = self.client.hmget(keys.request_key(self.id), PROGRESS_FIELDS)
        return cast(Any, tuple(fields))

    def _time_left(self) -> float:
        if self.timeout_s is None:
            return float("inf")
        return self.timeout_s - (time.monotonic() - self._since)

    def _check_time(self) -> None:
        if self._time_left() <= 0:
            raise no_token(self.id, self.timeout_s)

    def _wait_for_redis(self, error: redis.RedisError) -> None:
        """Pause before the next try; raise if access is denied or the time is over."""
        if isinstance(error, redis.AuthenticationError) or self._time_left() <= 0:
            raise error
        time.sleep(RETRY_S)
