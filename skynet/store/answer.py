"""Reads an answer while it is generated, through restarts of Redis: tokens in index order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import redis

from skynet.errors import RequestLost, SkynetError
from skynet.request.record import End, Token
from skynet.wire import keys

POLL_S = 1.0  # longest blocking read
RETRY_S = 0.1  # between tries while Redis is unreachable

Entry = tuple[bytes, dict[bytes, bytes]]


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
        self._since = time.monotonic()
        key = keys.tokens_key(self.id)
        expected, last, reread = start, b"0", False
        while True:
            try:
                entries = self._read(key, last)
                is_behind = not entries and self._is_behind(expected)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                self._wait_for_redis(error)
                last = b"0"  # the stream may be restored under other entry ids
                continue
            if is_behind and reread:
                raise self._missing(expected)
            if is_behind:
                last, reread = b"0", True
            elif not entries:
                self._check_time()
            for entry, fields in entries:
                last = entry
                if b"end" in fields:
                    yield End.from_json(fields[b"end"])
                    return
                token = Token.from_fields(fields)
                if token.index > expected:
                    raise self._missing(expected)
                if token.index == expected:
                    expected, reread = expected + 1, False
                    yield token
                    self._since = time.monotonic()  # the caller's time does not count

    def end(self) -> End:
        """Wait for the end, without a wake-up for each token. Errors as of `tokens`."""
        self._since = time.monotonic()
        while True:
            try:
                for _, fields in self._read(keys.end_key(self.id), b"0"):
                    return End.from_json(fields[b"end"])
                _, end = self._progress()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                self._wait_for_redis(error)
                continue
            if end is not None:
                return end
            self._check_time()

    def _read(self, key: str, last: bytes) -> list[Entry]:
        """Entries after `last`; none if none comes within POLL_S."""
        block_ms = max(1, int(min(POLL_S, self._time_left()) * 1000))
        replies = cast(Any, self.client.xread({key: last}, count=256, block=block_ms))
        if not replies:
            return []
        entries = replies[0][1] if isinstance(replies, list) else next(iter(replies.values()))[0]
        return cast(list[Entry], entries)

    def _progress(self) -> tuple[int, End | None]:
        """The record's number of tokens, and its end."""
        fields = ["emitted", "end"]
        emitted, end = cast(Any, self.client.hmget(keys.request_key(self.id), fields))
        if emitted is None:
            raise RequestLost(
                f"request {self.id} is not in Redis: it expired after SKYNET_RESULT_EXPIRES_S, "
                "never existed, or Redis lost it in a restart or failover; submit it again"
            )
        return int(emitted), None if end is None else End.from_json(end)

    def _is_behind(self, expected: int) -> bool:
        """Whether the record has tokens or an end that the stream has not given."""
        emitted, end = self._progress()
        return emitted > expected or end is not None

    def _missing(self, expected: int) -> SkynetError:
        return SkynetError(
            f"request {self.id}: token {expected} is missing in Redis, but later ones exist: "
            "submit the request again"
        )

    def _time_left(self) -> float:
        if self.timeout_s is None:
            return float("inf")
        return self.timeout_s - (time.monotonic() - self._since)

    def _check_time(self) -> None:
        if self._time_left() <= 0:
            raise TimeoutError(f"request {self.id}: no token and no end for {self.timeout_s:g} s")

    def _wait_for_redis(self, error: redis.RedisError) -> None:
        """Pause before the next try; raise if access is denied or the time is over."""
        if isinstance(error, redis.AuthenticationError) or self._time_left() <= 0:
            raise error
        time.sleep(RETRY_S)
