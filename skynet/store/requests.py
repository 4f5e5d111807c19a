"""Requests and their token streams: the durable truth of what was asked and answered.

A record is written before its task is sent, so a lost message loses nothing. Tokens are appended
to a stream by index, compare-and-set: index n only after n - 1, and only one end. What an
orchestrator writes is fenced: one that leads no more writes nothing. Knows nothing of how tokens
are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import redis

from skynet.errors import Fenced, QueueFull
from skynet.request.record import End, Logprobs, Options, Record, Token
from skynet.store.answer import AnswerReader
from skynet.store.clock import RedisClock
from skynet.store.leader import GUARD, fenced
from skynet.wire import keys

__all__ = ["End", "Logprobs", "Options", "Record", "Requests", "Token"]

# KEYS: arrival counter, open requests, then records. ARGV: most open requests (-1: any number),
# how many fields a record has, then for each its id, and its fields and values in turn. Replies 1
# and the last arrival, or 0 and how many are open.
CREATE = """
local open, most = redis.call('ZCARD', KEYS[2]), tonumber(ARGV[1])
local count, size, arrival = #KEYS - 2, 2 * tonumber(ARGV[2]), 0
if most >= 0 and open + count > most then return {0, open} end
for i = 1, count do
  local at = 3 + (i - 1) * (size + 1)
  arrival = redis.call('INCR', KEYS[1])
  redis.call('HSET', KEYS[2 + i], 'arrival', arrival, unpack(ARGV, at + 1, at + size))
  redis.call('ZADD', KEYS[2], arrival, ARGV[at])
end
return {1, arrival}
"""

NOW = """
local clock = redis.call('TIME')
local now = clock[1] .. '.' .. string.format('%06d', clock[2])
"""

# KEYS: leader, then records. ARGV: fence.
START = (
    GUARD
    + NOW
    + """
for i = 2, #KEYS do
  if redis.call('HGET', KEYS[i], 'state') == 'waiting' then
    redis.call('HSET', KEYS[i], 'state', 'running', 'started_at', now)
  end
end
"""
)

# KEYS: leader, then record and stream of each sequence in turn.
# ARGV: fence, then index, token id, text and log-probabilities ('': none) of each in turn. Replies
# for each: 1 appended, 0 stale or ended, -1 appended, and somebody asked to cancel.
APPEND = (
    GUARD
    + NOW
    + """
local replies = {}
for i = 1, (#KEYS - 1) / 2 do
  local record, stream = KEYS[2 * i], KEYS[2 * i + 1]
  local index, token, text, logprobs = unpack(ARGV, 4 * i - 2, 4 * i + 1)
  local found = redis.call('HMGET', record, 'emitted', 'state', 'cancel')
  if found[1] ~= index or found[2] == 'done' then
    replies[i] = 0
  else
    if logprobs == '' then
      redis.call('XADD', stream, '*', 'i', index, 't', token, 'p', text)
    else
      redis.call('XADD', stream, '*', 'i', index, 't', token, 'p', text, 'l', logprobs)
    end
    redis.call('HSET', record, 'emitted', index + 1, 'last_token_at', now)
    if index == '0' then redis.call('HSET', record, 'first_token_at', now) end
    replies[i] = found[3] and -1 or 1
  end
end
return replies
"""
)

# KEYS: leader, record, stream, end, open requests, and perhaps Celery's result.
# ARGV: fence, id, end as JSON, time to live in seconds, the encoded result or '', then index, token
# id and text of each token that is written with the end, in turn.
# Replies 1 the first time, 0 after. The result is stored and told as Celery's backend does it.
FINISH = (
    GUARD
    + NOW
    + """
local found = redis.call('HMGET', KEYS[2], 'state', 'emitted')
if not found[1] or found[1] == 'done' then return 0 end
local count = tonumber(found[2])
for i = 6, #ARGV, 3 do
  if tonumber(ARGV[i]) == count then
    redis.call('XADD', KEYS[3], '*', 'i', ARGV[i], 't', ARGV[i + 1], 'p', ARGV[i + 2])
    count = count + 1
  end
end
if #ARGV > 5 then redis.call('HSET', KEYS[2], 'emitted', count, 'last_token_at', now) end
redis.call('HSET', KEYS[2], 'state', 'done', 'end', ARGV[3])
redis.call('XADD', KEYS[3], '*', 'end', ARGV[3])
redis.call('XADD', KEYS[4], '*', 'end', ARGV[3])
redis.call('ZREM', KEYS[5], ARGV[2])
for i = 2, 4 do redis.call('EXPIRE', KEYS[i], ARGV[4]) end
if KEYS[6] then
  redis.call('SETEX', KEYS[6], ARGV[4], ARGV[5])
  redis.call('PUBLISH', KEYS[6], ARGV[5])
end
return 1
"""
)

# KEYS: record. Replies 1 if the request is still open.
CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'done' then return 0 end
redis.call('HSET', KEYS[1], 'cancel', 1)
return 1
"""


class Requests:
    """All requests of one Redis.

    expires_s: how long an answer is kept.
    fence: the leader's fencing token at this moment, "" when it does not lead; without one nothing
        is checked.
    """

    def __init__(
        self, client: redis.Redis, expires_s: int, fence: Callable[[], str] | None = None
    ) -> None:
        self.client = client
        self.expires_s = expires_s
        self.fence = fence
        self.clock = RedisClock(client)
        self._create = client.register_script(CREATE)
        self._start = client.register_script(START)
        self._append = client.register_script(APPEND)
        self._finish = client.register_script(FINISH)
        self._cancel = client.register_script(CANCEL)

    def now(self) -> float:
        """Redis's time, which `created` and `deadline` are in; see `RedisClock.now`."""
        return self.clock.now()

    # -- whoever asks --------------------------------------------------------------------------

    def create(self, record: Record, limit: int | None = None) -> None:
        """Write the record and put it into the queue of unfinished ones, by arrival.

        limit: refuse if so many are unfinished.

        Raises:
            QueueFull: too many are; nothing was written.
        """
        self.create_all([record], limit)

    def create_all(self, records: Sequence[Record], limit: int | None = None) -> None:
        """The same for several: all or none of them."""
        redis_keys = [keys.ARRIVALS_KEY, keys.OPEN_REQUESTS_KEY]
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
        """Leave a note to cancel; False if the request is unknown or has ended."""
        return bool(self._cancel(keys=[keys.request_key(request_id)], args=[]))

    def stream(
        self, request_id: str, start: int = 0, timeout_s: float | None = None
    ) -> Iterator[Token | End]:
        """Each token from index `start` once and in order, then the end. Blocks until they come.

        timeout_s: longest wait for the next token, and for a Redis that is away.

        Raises:
            TimeoutError: nothing came for `timeout_s`.
            redis.RedisError: Redis was away for `timeout_s`.
            RequestLost: the id is unknown, or its answer has expired.
        """
        return AnswerReader(self.client, request_id, timeout_s).tokens(start)

    def wait_end(self, request_id: str, timeout_s: float | None = None) -> End:
        """Wait for the end only. Arguments and errors as of `stream`."""
        return AnswerReader(self.client, request_id, timeout_s).end()

    # -- whoever looks -------------------------------------------------------------------------

    def read(self, request_id: str) -> Record | None:
        """The record, or None when it never was or has expired."""
        found = cast(dict[bytes, bytes], self.client.hgetall(keys.request_key(request_id)))
        return Record.from_fields(request_id, found) if b"prompt" in found else None

    def num_open(self) -> int:
        """Requests that have not ended."""
        return self.client.zcard(keys.OPEN_REQUESTS_KEY)

    def open_ids(self) -> list[str]:
        """Ids of requests that have not ended, first come first."""
        found = cast(list[bytes], self.client.zrange(keys.OPEN_REQUESTS_KEY, 0, -1))
        return [item.decode() for item in found]

    def forget(self, request_id: str) -> None:
        """Take an id whose record is gone out of the queue."""
        self.client.zrem(keys.OPEN_REQUESTS_KEY, request_id)

    def emitted(self, request_id: str) -> list[Token]:
        """The tokens appended so far, in order."""
        entries = cast(list[Any], self.client.xrange(keys.tokens_key(request_id)))
        return [Token.from_fields(fields) for _, fields in entries if b"t" in fields]

    def emitted_tokens(self, request_id: str) -> list[int]:
        """Ids of the tokens appended so far, in order."""
        return [token.id for token in self.emitted(request_id)]

    # -- the orchestrator: all of these raise Fenced if it leads no more ------------------------

    def start(self, request_ids: Sequence[str]) -> None:
        """Mark as running, unless they have ended or expired."""
        redis_keys = [keys.request_key(request_id) for request_id in request_ids]
        self._write(self._start, redis_keys, [])

    def append(self, tokens: Sequence[tuple[str, Token]]) -> list[int]:
        """Append one token to each of several requests: 1 done, 0 stale, -1 done but cancelled."""
        redis_keys: list[str | bytes] = []
        arguments: list[str | bytes | int] = []
        for request_id, token in tokens:
            redis_keys += (keys.request_key(request_id), keys.tokens_key(request_id))
            logprobs = "" if token.logprobs is None else token.logprobs.to_json()
            arguments += (token.index, token.id, token.text, logprobs)
        return cast(list[int], self._write(self._append, redis_keys, arguments))

    def finish(
        self,
        request_id: str,
        end: End,
        meta: tuple[str | bytes, str | bytes] | None = None,
        tokens: Sequence[Token] = (),
    ) -> bool:
        """End the request, once; False, and nothing is written, if it had ended already.

        meta: key and encoded value of its Celery result, stored and published with the end.
        tokens: of an answer that is known all at once; they are written with the end.
        """
        redis_keys: list[str | bytes] = [
            keys.request_key(request_id),
            keys.tokens_key(request_id),
            keys.end_key(request_id),
            keys.OPEN_REQUESTS_KEY,
        ]
        key, result = meta or ("", "")
        redis_keys += [key] if key else []
        arguments: list[str | bytes | int] = [request_id, end.to_json(), self.expires_s, result]
        for token in tokens:
            arguments += (token.index, token.id, token.text)
        return bool(self._write(self._finish, redis_keys, arguments))

    def _write(
        self, script: Any, redis_keys: Sequence[str | bytes], arguments: Sequence[Any]
    ) -> Any:
        fence = "" if self.fence is None else self.fence()
        if self.fence is not None and not fence:
            raise Fenced("this orchestrator does not lead: it may write nothing")
        with fenced():
            return script(keys=[keys.LEADER_KEY, *redis_keys], args=[fence, *arguments])
