"""Chords as Celery messages: a header task for each shard of a stage, and a body.

The messages are in Celery's format (protocol 2: `group`, `group_index`, `chord`), made from forms
of Celery's and kombu's (skynet/chords/message_form.py), without the steps that cost Celery 20 ms a
chord: a subscription, a routing look-up, a `repr` and a round trip for each task. All messages of a
chord, and the hidden states they start from, are sent in one script. All messages are of one step:
see skynet/store/transient.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from kombu.serialization import register

from skynet.chords.message_form import MessageForm, encode_body
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.store.leader import GUARD, fenced
from skynet.store.resp import RespConnection, Script
from skynet.store.transient import TRANSIENT
from skynet.wire import codec, keys
from skynet.wire.frame import HEADER
from skynet.wire.step import SpanMessage

if TYPE_CHECKING:
    from celery import Celery

# KEYS: leader, keys to set, queues. ARGV: fence, time to live in ms, number of keys to set, then a
# value or message for each of KEYS[2] and later.
EMIT = Script(
    TRANSIENT
    + GUARD
    + """
local values = tonumber(ARGV[3])
for i = 2, #KEYS do
  if i <= values + 1 then
    redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[2])
  else
    redis.call('LPUSH', KEYS[i], ARGV[i + 2])
  end
end
return 1
"""
)

# KEYS: queue. ARGV: LPUSH, or RPUSH for the head of the queue; message.
PUSH = Script(TRANSIENT + "return redis.call(ARGV[1], KEYS[1], ARGV[2])")

# Larger values are not sent in the messages: base64 and two decodings cost more than a key. One
# row of 4,096 float32 numbers still is.
INLINE_BYTES = 16 * 1024 + HEADER.size

register(
    keys.SERIALIZER,
    codec.encode,
    codec.decode,
    content_type=codec.CONTENT_TYPE,
    content_encoding="binary",
)


def next_span(plan: Plan, start: int, layers_per_chord: int) -> Range:
    """The span of `layers_per_chord` layers from layer `start`, cut at the end of the stage."""
    stage = plan.stages[plan.stage_of(start)]
    return Range(start, min(start + max(1, layers_per_chord), stage.layers.stop))


class Messenger:
    """Writes task messages directly into the queues of a Redis broker.

    Sends again if the connection breaks: receivers drop duplicates.
    """

    def __init__(self, app: Celery, connection: RespConnection, ttl_s: float) -> None:
        self.app = app
        self.connection = connection
        self.ttl_ms = b"%d" % int(ttl_s * 1000)
        self.origin = f"{os.getpid()}@{socket.gethostname()}"
        self._forms: dict[str, MessageForm] = {}

    def message(
        self,
        task: str,
        args: Sequence[Any],
        queue: str,
        *,
        chord: dict[str, Any] | None = None,
        **headers: Any,
    ) -> tuple[bytes, bytes]:
        """(key, value) to LPUSH so that the worker of `queue` runs the task.

        chord, headers: as of `encode_body` and `MessageForm.fill`.
        """
        value = self._form(task).fill(queue, encode_body(args, chord), **headers)
        return keys.queue_key(queue).encode(), value

    def send(self, task: str, args: Sequence[Any], queue: str, **headers: Any) -> None:
        """Queue one task."""
        self._push(b"LPUSH", self.message(task, args, queue, **headers))

    def give_back(self, task: str, args: Sequence[Any], queue: str, **headers: Any) -> None:
        """Put a task of another worker back at the head of its queue."""
        self._push(b"RPUSH", self.message(task, args, queue, **headers))

    def _push(self, push: bytes, message: tuple[bytes, bytes]) -> None:
        queue, value = message
        self.connection.run(PUSH, [queue], [push, value])

    def emit_chord(
        self, plan: Plan, span: SpanMessage, *, spent_s: float = 0.0, fence: str = ""
    ) -> None:
        """Send the chord that computes a span: `span` to every shard of its stage, and a body.

        Rows and hidden states larger than INLINE_BYTES do not travel in the messages but under
        Redis keys.

        spent_s: compute seconds of the spans before this one, so that the orchestrator can tell
            the cost of chords from the cost of layers.
        fence: the orchestrator's; nothing is sent once another leads. Shards have none: their
            chords are stale with their epoch.

        Raises:
            Fenced: another orchestrator leads.
        """
        span = span._replace(plan_id=plan.id)
        rows, hidden = span.rows or b"", span.hidden
        stage = plan.stage_of(span.start)
        num_shards = len(plan.stages[stage].shards)
        group = keys.chord_id(span.epoch, span.step, span.start)
        body = body_signature(plan, span.step, Range(span.start, span.stop), num_shards, spent_s)
        values: list[tuple[bytes, bytes]] = []
        messages: list[tuple[bytes, bytes]] = []
        if hidden is None:  # this key exists for as long as the step is wanted
            values.append((keys.step_key(span.epoch, span.step).encode(), rows))
        elif len(hidden) > INLINE_BYTES:
            values.append((keys.hidden_key(group).encode(), hidden))
            span = span._replace(hidden=None)
        if len(rows) > INLINE_BYTES:
            span = span._replace(rows=None)
        form, text = self._form(keys.RUN_SPAN_TASK), encode_body(span, body)
        argsrepr = f"(step {span.step}, layers [{span.start}, {span.stop}))"
        for shard in range(num_shards):
            queue = str(keys.Address(stage, shard))
            message = form.fill(queue, text, group_id=group, group_index=shard, argsrepr=argsrepr)
            messages.append((keys.queue_key(queue).encode(), message))
        # Atomic: if two chords of a stage were queued in different orders at two shards, each shard
        # would wait for the other in the exchange.
        pairs = [*values, *messages]
        redis_keys = [keys.leader_key().encode(), *(key for key, _ in pairs)]
        arguments = [
            fence.encode(),
            self.ttl_ms,
            b"%d" % len(values),
            *(value for _, value in pairs),
        ]
        with fenced():
            self.connection.run(EMIT, redis_keys, arguments)

    def _form(self, task: str) -> MessageForm:
        if task not in self._forms:
            channel = self.app.connection_for_write().default_channel
            self._forms[task] = MessageForm(self.app, channel, task, self.origin)
        return self._forms[task]


def body_signature(
    plan: Plan, step: int, span: Range, num_shards: int, spent_s: float
) -> dict[str, Any]:
    """The chord's body as a Celery signature: `advance` in place or `finish_step` when done."""
    if span.stop == plan.num_layers:
        task, options = keys.FINISH_STEP_TASK, {"queue": keys.ORCHESTRATOR_QUEUE}
    else:
        task, options = keys.ADVANCE_TASK, {}
    return cast(
        dict[str, Any],
        {
            "task": task,
            "args": [plan.epoch, step, span.stop, spent_s, plan.id],
            "kwargs": {},
            "options": options,
            "subtask_type": None,
            "immutable": False,
            "chord_size": num_shards,
        },
    )
