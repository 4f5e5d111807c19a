"""Requests and their token streams: the durable truth of what was asked and answered.

A record is written before its task is sent, so a lost message loses nothing. Tokens are appended
to a stream by index, compare-and-set: index n only after n - 1, and only one end. Knows nothing of
how tokens are made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import redis

from skynet import names, wire
from skynet.errors import BadRequest

# KEYS: records.
START = """
for _, record in ipairs(KEYS) do
  if redis.call('HGET', record, 'state') == 'waiting' then
    redis.call('HSET', record, 'state', 'running')
  end
end
"""

# KEYS: record and stream of each sequence in turn.
# ARGV: index, token id and text of each in turn. Replies for each: 1 appended, 0 stale or ended,
# -1 appended, and somebody asked to cancel.
APPEND = """
local replies = {}
for i = 1, #KEYS / 2 do
  local record, stream = KEYS[2 * i - 1], KEYS[2 * i]
  local index, token, text = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local found = redis.call('HMGET', record, 'emitted', 'state', 'cancel')
  if found[1] ~= index or found[2] == 'done' then
    replies[i] = 0
  else
    redis.call('XADD', stream, '*', 'i', index, 't', token, 'p', text)
    redis.call('HSET', record, 'emitted', index + 1)
    replies[i] = found[3] and -1 or 1
  end
end
return replies
"""

# KEYS: record, stream, open requests. ARGV: id, end as JSON, time to live in seconds.
# Replies 1 the first time, 0 after.
FINISH = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'done' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'done', 'end', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'end', ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""


@dataclass(frozen=True)
class Options:
    """How to answer: the names are Hugging Face's, `max_tokens` and `stop` are OpenAI's."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True)
class Record:
    """One request as it was accepted."""

    id: str
    prompt: tuple[int, ...]
    options: Options
    created: float
    deadline: float
    state: str = "waiting"  # waiting, running, done
    emitted: int = 0
    arrival: int = 0
    cancelled: bool = False
    model: str = ""  # the digest its tokens belong to
    end: dict[str, Any] | None = None

    def fields(self) -> dict[Any, Any]:
        return {
            "prompt": wire.encode(np.asarray(self.prompt, dtype=np.int32)),
            "options": json.dumps(self.options.__dict__),
            "created": repr(self.created),
            "deadline": repr(self.deadline),
            "state": self.state,
            "emitted": self.emitted,
            "arrival": self.arrival,
            "model": self.model,
        }

    @classmethod
    def from_fields(cls, request_id: str, found: dict[bytes, bytes]) -> Record:
        options = json.loads(found[b"options"])
        options["stop"] = tuple(options["stop"])
        return cls(
            id=request_id,
            prompt=tuple(wire.decode(found[b"prompt"]).tolist()),
            options=Options(**options),
            created=float(found[b"created"]),
            deadline=float(found[b"deadline"]),
            state=found[b"state"].decode(),
            emitted=int(found[b"emitted"]),
            arrival=int(found[b"arrival"]),
            cancelled=b"cancel" in found,
            model=found.get(b"model", b"").decode(),
            end=json.loads(found[b"end"]) if b"end" in found else None,
        )


@dataclass(frozen=True)
class Token:
    """One token of an answer; `text` is what it adds to the text, often empty or partial."""

    index: int
    id: int
    text: str


@dataclass(frozen=True)
class End:
    """How a request ended: a finish reason, or an error's class name and message."""

    text: str = ""  # what was still held back
    finish_reason: str = ""
    error: str = ""
    message: str = ""
    timings: dict[str, float] = field(default_factory=dict)


class Requests:
    """All requests of one Redis."""

    def __init__(self, client: redis.Redis, expires_s: int) -> None:
        self.client = client
        self.expires_s = expires_s
        self._start = client.register_script(START)
        self._append = client.register_script(APPEND)
        self._finish = client.register_script(FINISH)

    def create(self, record: Record) -> None:
        """Write the record and put it into the queue of unfinished ones, by arrival."""
        arrival = self.client.incr(names.ARRIVALS_KEY)
        key = names.request_key(record.id)
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping={**record.fields(), "arrival": arrival})
            pipe.zadd(names.OPEN_REQUESTS_KEY, {record.id: arrival})
            pipe.execute()

    def read(self, request_id: str) -> Record | None:
        """The record, or None when it never was or has expired."""
        found = cast(dict[bytes, bytes], self.client.hgetall(names.request_key(request_id)))
        return Record.from_fields(request_id, found) if b"prompt" in found else None

    def num_open(self) -> int:
        """Requests that have not ended."""
        return self.client.zcard(names.OPEN_REQUESTS_KEY)

    def open_ids(self) -> list[str]:
        """Ids of requests that have not ended, first come first."""
        found = cast(list[bytes], self.client.zrange(names.OPEN_REQUESTS_KEY, 0, -1))
        return [item.decode() for item in found]

    def forget(self, request_id: str) -> None:
        """Take an id whose record is gone out of the queue."""
        self.client.zrem(names.OPEN_REQUESTS_KEY, request_id)

    def start(self, request_ids: Sequence[str]) -> None:
        """Mark as running, unless they have ended or expired."""
        self._start(keys=[names.request_key(request_id) for request_id in request_ids], args=[])

    def append(self, tokens: Sequence[tuple[str, Token]]) -> list[int]:
        """Append one token to each of several requests: 1 done, 0 stale, -1 done but cancelled."""
        keys: list[str] = []
        arguments: list[str | int] = []
        for request_id, token in tokens:
            keys += (names.request_key(request_id), names.tokens_key(request_id))
            arguments += (token.index, token.id, token.text)
        return cast(list[int], self._append(keys=keys, args=arguments))

    def emitted_tokens(self, request_id: str) -> list[int]:
        """Ids of the tokens appended so far, in order."""
        entries = cast(list[Any], self.client.xrange(names.tokens_key(request_id)))
        return [int(fields[b"t"]) for _, fields in entries if b"t" in fields]

    def finish(self, request_id: str, end: End) -> bool:
        """End the request, once; False if it had ended already."""
        keys = [
            names.request_key(request_id),
            names.tokens_key(request_id),
            names.OPEN_REQUESTS_KEY,
        ]
        arguments: list[str | int] = [request_id, json.dumps(end.__dict__), self.expires_s]
        return bool(self._finish(keys=keys, args=arguments))

    def ask_cancel(self, request_id: str) -> bool:
        """Leave a note to cancel; False if the request is unknown or has ended."""
        key = names.request_key(request_id)
        state = cast("bytes | None", self.client.hget(key, "state"))
        if state is None or state == b"done":
            return False
        self.client.hset(key, "cancel", 1)
        return True

    def stream(
        self, request_id: str, start: int = 0, timeout_s: float | None = None
    ) -> Iterator[Token | End]:
        """Tokens from index `start`, then the end. Blocks until they come.

        timeout_s: longest wait for the next token.

        Raises:
            TimeoutError: nothing came for `timeout_s`.
            BadRequest: the id is unknown, or its answer has expired.
        """
        key = names.tokens_key(request_id)
        last = "0"
        waited_since = time.monotonic()
        while True:
            replies = cast(
                list[Any],
                self.client.xread(
                    {key: last},
                    count=256,
                    block=1000,
                ),
            )
            if not replies:
                if not self.client.exists(names.request_key(request_id)):
                    raise BadRequest(f"request {request_id} is unknown here, or has expired")
                if timeout_s is not None and time.monotonic() - waited_since > timeout_s:
                    raise TimeoutError(f"request {request_id}: no token for {timeout_s:g} s")
                continue
            waited_since = time.monotonic()
            entries = (
                replies[0][1] if isinstance(replies, list) else next(iter(replies.values()))[0]
            )
            for entry, fields in entries:
                last = entry
                if b"end" in fields:
                    yield End(**json.loads(fields[b"end"]))
                    return
                token = Token(int(fields[b"i"]), int(fields[b"t"]), fields[b"p"].decode())
                if token.index >= start:
                    yield token
