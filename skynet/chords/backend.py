"""Returns the parts of chords: a subclass of Celery's Redis result backend.

Stock Celery needs seven serial round trips from the last part to the queued body. Here one script
counts parts by shard (a duplicate cannot complete a chord), gives all parts to the worker that
returns the last one, and notes how far the step is, so that late parts change nothing. A failed
part ends the chord at once. Chords that are not SkyNet's are left to Celery.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery.backends.redis import RedisBackend

from skynet.errors import NotFinite, StepFailed, WireError
from skynet.store.connection import connection_pool
from skynet.store.resp import Script
from skynet.store.transient import TRANSIENT
from skynet.wire import keys

logger = logging.getLogger(__name__)

BODIES = frozenset({keys.ADVANCE_TASK, keys.FINISH_STEP_TASK})

# KEYS: the step's hash: shard number -> part of the current chord, `done` -> last layer of the last
# chord that is done; the hidden states the chord started from, deleted once all parts are there.
# ARGV: shard, number of shards, time to live in ms, part, 1 if it is a failure, last layer.
# Replies {0}: parts are missing, or the chord is done; {1}: the chord has failed; or
# {1, {shard, part, ...}}: this part was the last, with all others.
PART_RETURN = Script(
    TRANSIENT
    + """
local key, shard, failed, layer = KEYS[1], ARGV[1], ARGV[5] == '1', ARGV[6]
local done = tonumber(redis.call('HGET', key, 'done') or -1)
if tonumber(layer) <= done then return {0} end
redis.call('HSET', key, shard, '')
local missing = tonumber(ARGV[2]) + (done < 0 and 0 or 1) - redis.call('HLEN', key)
local reply = {1}
if missing > 0 and not failed then
  redis.call('HSET', key, shard, ARGV[4])
  reply = {0}
else
  if not failed then
    redis.call('HDEL', key, shard, 'done')
    reply = {1, redis.call('HGETALL', key)}
  end
  redis.call('DEL', key)
  redis.call('HSET', key, 'done', layer)
  redis.call('UNLINK', KEYS[2])
end
redis.call('PEXPIRE', key, ARGV[3])
return reply
"""
)


class ChordBackend(RedisBackend):
    """Celery's Redis result backend with SkyNet's chords, on the broker's Redis."""

    def _get_pool(self, **options: Any) -> redis.ConnectionPool:
        return connection_pool(
            self.app.address,
            timeout_s=options["socket_timeout"],
            max_connections=options["max_connections"],
        )

    def as_uri(self, include_password: bool = False) -> str:
        """For logs; never with a password."""
        return str(self.app.address)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to nothing, unlike Celery's: answers are read from the requests' streams.

        Celery would end the subscription in the result's `__del__`, and try that for 20 s in
        whatever thread the garbage collector interrupts, if Redis is away.
        """

    def on_chord_part_return(
        self, request: Any, state: str, result: Any, propagate: Any = None, **kwargs: Any
    ) -> Any:
        """Return one shard's part; the worker that returns the last one runs or sends the body."""
        body = request.chord
        if body["task"] not in BODIES:
            return super().on_chord_part_return(request, state, result, propagate, **kwargs)
        try:
            check_chord(request)
        except WireError as error:
            logger.error("a part was dropped: %s", error)
            return None
        try:
            self._return_result(request, body, result)
        except redis.RedisError as lost:
            # The step fails at its deadline.
            logger.warning("chord %s: the part could not be returned: %s", request.group, lost)
        return None

    def _return_result(self, request: Any, body: dict[str, Any], result: Any) -> None:
        failed = isinstance(result, BaseException)
        payload = b"" if failed else result.encode()
        parts = self._return_part(request, body["chord_size"], payload, failed)
        if parts is None:
            return
        if failed:
            self._fail_step(body, result)
        else:
            self._run_body(request, body, parts)

    def _return_part(
        self, request: Any, chord_size: int, payload: bytes, failed: bool
    ) -> list[bytes] | None:
        """All parts in shard order if this part completes or fails the chord, else None."""
        epoch, step, layer = request.chord["args"][:3]
        redis_keys = [keys.chord_key(epoch, step), keys.hidden_key(request.group)]
        arguments = (
            b"%d" % request.group_index,
            b"%d" % chord_size,
            self.app.messenger.ttl_ms,
            payload,
            b"1" if failed else b"0",
            b"%d" % layer,
        )
        connection = self.app.messenger.connection
        reply = connection.run(PART_RETURN, [key.encode() for key in redis_keys], arguments)
        if not reply[0]:
            return None
        others = reply[1] if len(reply) > 1 else []
        by_shard = {int(others[i]): others[i + 1] for i in range(0, len(others), 2)}
        by_shard[request.group_index] = payload
        return [by_shard[shard] for shard in sorted(by_shard)]

    def _run_body(self, request: Any, body: dict[str, Any], parts: list[bytes]) -> None:
        """Run the body of an inner span here, without another message; send the last one."""
        queue = body["options"].get("queue")
        if queue is None and self.app.tasks[body["task"]].send_events:
            queue = request.delivery_info["routing_key"]  # traced: Flower shows it as a task
        if queue is not None:
            self.app.messenger.send(body["task"], [parts, *body["args"]], queue)
            return
        try:
            self.app.tasks[body["task"]].run(parts, *body["args"])
        except Exception as error:
            logger.exception("chord %s: the body failed", request.group)
            self._fail_step(body, error)

    def _fail_step(self, body: dict[str, Any], error: BaseException) -> None:
        epoch, step = body["args"][:2]
        plan_id = body["args"][4:5] or [""]
        name = type(error).__name__ if isinstance(error, StepFailed) else "ShardFailed"
        arguments = [epoch, step, name, str(error)]
        arguments.append(list(error.rows) if isinstance(error, NotFinite) else [])
        self.app.messenger.send(
            keys.FAIL_STEP_TASK, [*arguments, *plan_id], keys.ORCHESTRATOR_QUEUE
        )


def check_chord(request: Any) -> None:
    """Raise WireError unless a task's headers `group`, `group_index` and `chord` are SkyNet's."""
    body = request.chord
    arguments, options = body.get("args"), body.get("options")
    if (
        not isinstance(request.group, str)
        or not isinstance(arguments, list)
        or len(arguments) < 4
        or not all(
            type(number) is int
            for number in (request.group_index, body.get("chord_size"), *arguments[:3])
        )
        or not isinstance(options, dict)
        or options.get("queue") not in (None, keys.ORCHESTRATOR_QUEUE)
    ):
        raise WireError(f"chord {request.group!r:.40} with body {body!r:.200} is not SkyNet's")
