"""Writes answers: tokens, ends and Celery's results, by the leading orchestrator only.

Tokens are appended to a stream by index, compare-and-set: index n only after n - 1, and one end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import redis

from skynet.errors import Fenced
from skynet.request.record import End, Token
from skynet.store.leader import GUARD, fenced
from skynet.wire import keys

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
  if redis.pcall('HGET', KEYS[i], 'state') == 'waiting' then
    redis.call('HSET', KEYS[i], 'state', 'running', 'started_at', now)
  end
end
"""
)

# KEYS: leader, then record and stream of each request in turn.
# ARGV: fence, then index, token id, text and log-probabilities ('': none) of each token in turn.
# Replies for each token: 1 appended, 0 stale or ended, -1 appended to a cancelled request.
APPEND = (
    GUARD
    + NOW
    + """
local replies = {}
for i = 1, (#KEYS - 1) / 2 do
  local record, stream = KEYS[2 * i], KEYS[2 * i + 1]
  local index, token, text, logprobs = unpack(ARGV, 4 * i - 2, 4 * i + 1)
  -- pcall: a key of another type must not keep the other requests' tokens from being written.
  local emitted, state, cancel = unpack(redis.pcall('HMGET', record, 'emitted', 'state', 'cancel'))
  local entry = {'i', index, 't', token, 'p', text}
  if logprobs ~= '' then entry[7], entry[8] = 'l', logprobs end
  if emitted ~= index or state == 'done' then
    replies[i] = 0
  elseif type(redis.pcall('XADD', stream, '*', unpack(entry))) == 'table' then
    replies[i] = 0
  else
    redis.call('HSET', record, 'emitted', index + 1, 'last_token_at', now)
    if index == '0' then redis.call('HSET', record, 'first_token_at', now) end
    replies[i] = cancel and -1 or 1
  end
end
return replies
"""
)

# KEYS: leader, record, stream, end, open requests, and optionally Celery's result.
# ARGV: fence, id, end as JSON, time to live in seconds, the encoded result or '', then index, token
# id and text of each token that is written with the end, in turn.
# Replies 1 the first time, 0 after. The result is stored and published as Celery's backend does.
FINISH = (
    GUARD
    + NOW
    + """
local state, emitted = unpack(redis.call('HMGET', KEYS[2], 'state', 'emitted'))
if not state or state == 'done' then return 0 end
local count = tonumber(emitted) or 0
for i = 3, 4 do  -- a stream that another client has given another type
  if redis.call('TYPE', KEYS[i]).ok ~= 'stream' then redis.call('DEL', KEYS[i]) end
end
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


class AnswerWriter:
    """Writes the answers of one Redis. Every method raises Fenced if the caller does not lead.

    expires_s: lifetime of an answer after its end.
    fence: returns the caller's fencing token, "" while it does not lead; None: nothing is checked.
    """

    def __init__(
        self, client: redis.Redis, expires_s: int, fence: Callable[[], str] | None = None
    ) -> None:
        self.expires_s = expires_s
        self.fence = fence
        self._start = client.register_script(START)
        self._append = client.register_script(APPEND)
        self._finish = client.register_script(FINISH)

    def start(self, request_ids: Sequence[str]) -> None:
        """Mark requests as running, unless they have ended or expired."""
        redis_keys = [keys.request_key(request_id) for request_id in request_ids]
        self._write(self._start, redis_keys, [])

    def append(self, tokens: Sequence[tuple[str, Token]]) -> list[int]:
        """Append a token to each of several requests.

        Returns for each 1: appended; 0: stale or ended; -1: appended, but the request is cancelled.
        """
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
        """End the request once; False, and nothing is written, if it has ended already.

        meta: key and encoded value of its Celery result, stored and published with the end.
        tokens: written with the end, of answers that come all at once.
        """
        redis_keys: list[str | bytes] = [
            keys.request_key(request_id),
            keys.tokens_key(request_id),
            keys.end_key(request_id),
            keys.open_requests_key(),
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
            raise Fenced("this orchestrator does not lead: it must not write")
        with fenced():
            return script(keys=[keys.leader_key(), *redis_keys], args=[fence, *arguments])
