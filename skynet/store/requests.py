"""Requests and their answers: the durable record of each.

A record is written before its task is sent, so a lost message loses nothing. AnswerWriter writes
the tokens, AnswerReader reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import redis

from skynet.errors import QueueFull, WireError
from skynet.request.record import End, Record, Token
from skynet.store.answer import AnswerReader
from skynet.store.answer_writer import AnswerWriter
from skynet.store.clock import RedisClock
from skynet.store.foreign import is_wrong_type
from skynet.wire import keys

# KEYS: arrival counter, open requests, then records. ARGV: limit of open requests (-1: none),
# number of fields of a record, then for each record its id, and its fields and values in turn.
# Replies 1 and the last arrival number, or 0 and the number of open requests.
CREATE = """
local open, limit = redis.call('ZCARD', KEYS[2]), tonumber(ARGV[1])
local count, size, arrival = #KEYS - 2, 2 * tonumber(ARGV[2]), 0
if limit >= 0 and open + count > limit then return {0, open} end
for i = 1, count do
  local at = 3 + (i - 1) * (size + 1)
  arrival = redis.pcall('INCR', KEYS[1])
  if type(arrival) == 'table' then  -- no number: go on after the last arrival
    local last = redis.call('ZRANGE', KEYS[2], 0, 0, 'REV', 'WITHSCORES')
    redis.call('SET', KEYS[1], string.format('%.0f', last[2] or 0))
    arrival = redis.call('INCR', KEYS[1])
  end
  redis.call('HSET', KEYS[2 + i], 'arrival', arrival, unpack(ARGV, at + 1, at + size))
  redis.call('ZADD', KEYS[2], arrival, ARGV[at])
end
return {1, arrival}
"""

# KEYS: record. Replies 1 if the request is still open.
CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'done' then return 0 end
redis.call('HSET', KEYS[1], 'cancel', 1)
return 1
"""


class Requests:
    """All requests of one Redis.

    expires_s, fence: see AnswerWriter.
    """

    def __init__(
        self, client: redis.Redis, expires_s: int, fence: Callable[[], str] | None = None
    ) -> None:
        self.client = client
        self.clock = RedisClock(client)
        self.writer = AnswerWriter(client, expires_s, fence)
        self._create = client.register_script(CREATE)
        self._cancel = client.register_script(CANCEL)

    def now(self) -> float:
        """Redis's time, the time base of `created` and `deadline`; see `RedisClock.now`."""
        return self.clock.now()

    # -- for clients ---------------------------------------------------------------------------

    def create(self, record: Record, limit: int | None = None) -> None:
        """Write the record and queue it by arrival.

        limit: maximum of open requests.

        Raises:
            QueueFull: the limit is reached; nothing was written.
        """
        self.create_all([record], limit)

    def create_all(self, records: Sequence[Record], limit: int | None = None) -> None:
        """As `create`, for several records: all or none."""
        redis_keys = [keys.arrivals_key(), keys.open_requests_key()]
        arguments: list[Any] = [-1 if limit is None else limit, len(records[0].fields())]
        for record in records:
            redis_keys.append(keys.request_key(record.id))
            arguments.append(record.id)
            for name, value in record.fields().items():
                arguments += (name, value)
        taken, number = cast(list[int], self._create(keys=redis_keys, args=arguments))
        if not taken:
            raise QueueFull(
                f"{number} requests are unfinished, the limit is {limit}: try again later, or "
                "raise SKYNET_MAX_WAITING"
            )

    def ask_cancel(self, request_id: str) -> bool:
        """Mark a request as cancelled; False if it is unknown or has ended."""
        return bool(self._cancel(keys=[keys.request_key(request_id)], args=[]))

    def stream(
        self, request_id: str, start: int = 0, timeout_s: float | None = None
    ) -> Iterator[Token | End]:
        """Each token from index `start` once and in order, then the end. Blocks between tokens.

        timeout_s: maximum wait for the next token, and for an unreachable Redis.

        Raises:
            TimeoutError: no token for `timeout_s`.
            redis.RedisError: Redis was unreachable for `timeout_s`.
            RequestLost: the id is unknown, or its answer has expired.
        """
        return AnswerReader(self.client, request_id, timeout_s).tokens(start)

    def wait_end(self, request_id: str, timeout_s: float | None = None) -> End:
        """Wait for the end only. Arguments and errors as of `stream`."""
        return AnswerReader(self.client, request_id, timeout_s).end()

    # -- records -------------------------------------------------------------------------------

    def read(self, request_id: str) -> Record | None:
        """The record, or None if the id is unknown or the record has expired.

        Raises:
            WireError: the key holds something else.
        """
        try:
            fields = cast(dict[bytes, bytes], self.client.hgetall(keys.request_key(request_id)))
            return Record.from_fields(request_id, fields) if fields else None
        except WireError as error:
            raise WireError(f"request {request_id} cannot be read: {error}") from None
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            raise WireError(f"request {request_id} cannot be read: its key is no hash") from None

    def num_open(self) -> int:
        """Requests that have not ended."""
        return self.client.zcard(keys.open_requests_key())

    def open_ids(self) -> list[str]:
        """Ids of requests that have not ended, in order of arrival."""
        ids = cast(list[bytes], self.client.zrange(keys.open_requests_key(), 0, -1))
        readable = [request_id for request_id in ids if request_id.isascii()]
        if len(readable) < len(ids):  # no client makes such ids
            self.client.zrem(keys.open_requests_key(), *(set(ids) - set(readable)))
        return [request_id.decode() for request_id in readable]

    def forget(self, request_id: str) -> None:
        """Remove an id without a record from the queue."""
        self.client.zrem(keys.open_requests_key(), request_id)

    def discard(self, request_id: str) -> None:
        """Delete a request that has no readable record: its client is told that it is lost."""
        names = (keys.request_key, keys.tokens_key, keys.end_key)
        self.client.delete(*(name(request_id) for name in names))
        self.forget(request_id)

    def emitted(self, request_id: str) -> list[Token]:
        """The tokens appended so far, in order.

        Raises:
            WireError: the key holds something else.
        """
        try:
            entries = cast(list[Any], self.client.xrange(keys.tokens_key(request_id)))
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            raise WireError(f"request {request_id}: the key of its tokens is no stream") from None
        return [Token.from_fields(fields) for _, fields in entries if b"t" in fields]
