"""Reading an answer as it is made, through restarts of Redis. Goes by the tokens' own index."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import redis

from skynet.errors import RequestLost, SkynetError
from skynet.request.record import End, Token
from skynet.wire import keys

POLL_S = 1.0  # how long one blocking read stays with Redis
RETRY_S = 0.1  # between tries while Redis is away

Entry = tuple[bytes, dict[bytes, bytes]]


class AnswerReader:
    """One reader of one request's answer.

    timeout_s: longest wait for whatever comes next; None waits for ever.
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
        expected, last, looked_again = start, b"0", False
        while True:
            try:
                entries = self._read(key, last)
                is_behind = not entries and self._is_behind(expected)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                self._bear(error)
                last = b"0"  # entries may have come back under other ids
                continue
            if is_behind and looked_again:
                raise self._missing(expected)
            if is_behind:
                last, looked_again = b"0", True
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
                    expected, looked_again = expected + 1, False
                    yield token
                    self._since = time.monotonic()  # the caller's own time does not count

    def end(self) -> End:
        """Wait for the end, without being woken up for each token. Errors as of `tokens`."""
        self._since = time.monotonic()
        while True:
            try:
                for _, fields in self._read(keys.end_key(self.id), b"0"):
                    return End.from_json(fields[b"end"])
                _, end = self._look()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                self._bear(error)
                continue
            if end is not None:
                return end
            self._check_time()

    def _read(self, key: str, last: bytes) -> list[Entry]:
        """Entries after `last`; none if none comes for a while."""
        block = max(1, int(min(POLL_S, self._time_left()) * 1000))
        replies = cast(Any, self.client.xread({key: last}, count=256, block=block))
        if not replies:
            return []
        found = replies[0][1] if isinstance(replies, list) else next(iter(replies.values()))[0]
        return cast(list[Entry], found)

    def _look(self) -> tuple[int, End | None]:
        """How many tokens the record counts, and its end."""
        wanted = ["emitted", "end"]
        found = cast(Any, self.client.hmget(keys.request_key(self.id), wanted))
        if found[0] is None:
            raise RequestLost(
                f"request {self.id} is not in Redis: it expired after SKYNET_RESULT_EXPIRES_S, "
                "never was, or Redis restarted without its data; submit it again"
            )
        return int(found[0]), None if found[1] is None else End.from_json(found[1])

    def _is_behind(self, expected: int) -> bool:
        emitted, end = self._look()
        return emitted > expected or end is not None

    def _missing(self, expected: int) -> SkynetError:
        return SkynetError(
            f"request {self.id}: token {expected} is missing in Redis, where others follow it: "
            "submit the request again"
        )

    def _time_left(self) -> float:
        if self.timeout_s is None:
            return float("inf")
        return self.timeout_s - (time.monotonic() - self._since)

    def _check_time(self) -> None:
        if self._time_left() <= 0:
            raise TimeoutError(f"request {self.id}: no token and no end for {self.timeout_s:g} s")

    def _bear(self, error: redis.RedisError) -> None:
        """Redis is away: try again, unless it will not let us in or the time is over."""
        if isinstance(error, redis.AuthenticationError) or self._time_left() <= 0:
            raise error
        time.sleep(RETRY_S)
