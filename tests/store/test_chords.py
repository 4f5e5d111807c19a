"""Messages that SkyNet writes are those that Celery would have written."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from chord_cases import queued, tiny_plan

from skynet.chords.app import SkynetCelery
from skynet.chords.messenger import INLINE_BYTES, body_signature, next_span
from skynet.errors import Fenced
from skynet.planning.ranges import Range
from skynet.store.leader import Leadership
from skynet.wire import keys
from skynet.wire.step import SpanMessage

ADDRESS = "stage0.shard1"
UNIQUE = {"id", "root_id", "origin"}  # differ by message or by process


def stable(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what differs each time."""
    properties = dict(message["properties"])
    # Celery repeats the reprs among the properties, where they are not read.
    for name in ("correlation_id", "delivery_tag", "reply_to", "argsrepr", "kwargsrepr"):
        properties.pop(name, None)
    headers = {name: value for name, value in message["headers"].items() if name not in UNIQUE}
    return {**message, "headers": headers, "properties": properties}


def test_a_chords_message_is_what_celery_would_send(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a chord's header task, sent by Celery itself
    body = body_signature(tiny_plan(), 7, Range(0, 1), 2, 0.25)
    options: dict[str, Any] = {"group_id": "5.7.0", "group_index": 1, "chord": body}
    app.send_task(
        keys.RUN_SPAN_TASK,
        [5, 7, 0, 1],
        queue=ADDRESS,
        serializer=keys.SERIALIZER,
        argsrepr="(step 7)",
        kwargsrepr="",
        ignore_result=True,
        **options,
    )
    (celery_message,) = queued(client, ADDRESS)
    # When SkyNet writes it straight into the queue
    app.messenger.send(keys.RUN_SPAN_TASK, [5, 7, 0, 1], ADDRESS, argsrepr="(step 7)", **options)
    (skynet_message,) = queued(client, ADDRESS)
    # Then nothing differs but ids
    assert stable(skynet_message) == stable(celery_message)
    headers = skynet_message["headers"]
    assert headers["id"] == headers["root_id"] == skynet_message["properties"]["correlation_id"]
    assert (headers["group"], headers["group_index"]) == ("5.7.0", 1)
    assert skynet_message["body"][2]["chord"] == body


def test_a_plain_message_is_what_celery_would_send(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a task without a chord, with bytes in its arguments
    args = [[b"\x00\xff", b""], 5, 7, 4]
    app.send_task(
        keys.FINISH_STEP_TASK,
        args,
        queue=keys.ORCHESTRATOR_QUEUE,
        serializer=keys.SERIALIZER,
        argsrepr="",
        kwargsrepr="",
        ignore_result=True,
    )
    # When SkyNet sends it too
    app.messenger.send(keys.FINISH_STEP_TASK, args, keys.ORCHESTRATOR_QUEUE)
    # Then both are the same
    celery_message, skynet_message = queued(client, keys.ORCHESTRATOR_QUEUE)
    assert stable(skynet_message) == stable(celery_message)
    assert skynet_message["body"][0] == args


def test_a_chord_is_a_message_for_each_shard(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a plan of 2 stages x 3 shards
    plan = tiny_plan(2, 3)
    second = plan.stages[1].layers
    # When a chord of the second stage is emitted
    app.messenger.emit_chord(plan, SpanMessage(5, 9, second.start, 4, b"rows", b"hidden"))
    # Then each of its shards has one, with rows and hidden states, and no other shard
    for shard in range(3):
        assert client.llen(keys.queue_key(f"stage0.shard{shard}")) == 0
        (message,) = queued(client, f"stage1.shard{shard}")
        assert message["headers"]["group_index"] == shard
        assert message["headers"]["group"] == f"5.9.{second.start}"
        assert message["body"][0] == [5, 9, second.start, 4, b"rows", b"hidden", plan.id]
        chord = message["body"][2]["chord"]
        assert chord["task"] == keys.FINISH_STEP_TASK
        assert chord["options"] == {"queue": keys.ORCHESTRATOR_QUEUE}
        assert chord["chord_size"] == 3
    # And nothing else is left in Redis
    assert client.keys("skynet:*") == []


def test_large_rows_and_hidden_states_are_stored_under_keys(
    app: SkynetCelery, client: redis.Redis
) -> None:
    # Given rows and hidden states of more than a message takes
    plan = tiny_plan(1, 2)
    rows, hidden = bytes(INLINE_BYTES + 1), bytes(INLINE_BYTES + 2)
    # When the first and an inner span are emitted
    app.messenger.emit_chord(plan, SpanMessage(5, 9, 0, 1, rows))
    app.messenger.emit_chord(plan, SpanMessage(5, 9, 1, 4, rows, hidden))
    # Then the messages are small
    first, inner = queued(client, "stage0.shard0")
    assert first["body"][0] == [5, 9, 0, 1, None, None, plan.id]
    assert inner["body"][0] == [5, 9, 1, 4, None, None, plan.id]
    # And the rest lies there for a while
    assert client.get(keys.step_key(5, 9)) == rows
    assert client.get(keys.hidden_key(keys.chord_id(5, 9, 1))) == hidden
    queued(client, "stage0.shard1")
    redis_keys = client.keys("*")
    assert len(redis_keys) == 2
    assert all(0 < client.ttl(key) <= 60 for key in redis_keys)


def test_the_body_advances_until_the_last_layer() -> None:
    # Given a plan of 4 layers in 2 stages
    plan = tiny_plan()
    # Then inner spans advance to where the next one starts; the last one ends the step
    inner = body_signature(plan, 3, Range(1, 2), 2, 0.5)
    last = body_signature(plan, 3, Range(3, 4), 2, 0.75)
    assert (inner["task"], inner["args"]) == (keys.ADVANCE_TASK, [5, 3, 2, 0.5, plan.id])
    assert (last["task"], last["args"]) == (keys.FINISH_STEP_TASK, [5, 3, 4, 0.75, plan.id])
    assert inner["options"] == {}


@pytest.mark.parametrize("layers_per_chord", [1, 2, 3, 99])
def test_spans_tile_the_layers_and_never_cross_a_stage(layers_per_chord: int) -> None:
    # Given 4 layers in 1, 2 or 3 stages
    for stages in (1, 2, 3):
        plan = tiny_plan(stages)
        # When a step goes through them
        at, spans = 0, []
        while at < plan.num_layers:
            spans.append(next_span(plan, at, layers_per_chord))
            at = spans[-1].stop
        # Then each layer is in one span, and no span in two stages
        assert [layer for span in spans for layer in range(span.start, span.stop)] == [0, 1, 2, 3]
        for span in spans:
            assert 1 <= span.size <= layers_per_chord
            assert plan.stage_of(span.start) == plan.stage_of(span.stop - 1)


def test_a_message_that_is_given_back_comes_next(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a queue with two messages, the first of which a worker took by mistake
    for step in (1, 2, 3):
        app.messenger.send(keys.FAIL_STEP_TASK, [5, step, "PeerLost", "late"], ADDRESS)
    client.rpop(keys.queue_key(ADDRESS))
    # When it is given back
    headers: dict[str, Any] = {"group_id": "5.1.0", "group_index": 1, "chord": {"task": "x"}}
    app.messenger.give_back(keys.FAIL_STEP_TASK, [5, 1, "PeerLost", "late"], ADDRESS, **headers)
    # Then it is the next that is taken, and still of its chord
    messages = queued(client, ADDRESS)
    assert [message["body"][0][1] for message in messages] == [1, 2, 3]
    assert messages[0]["headers"]["group"] == "5.1.0"
    assert messages[0]["body"][2]["chord"] == {"task": "x"}


@pytest.mark.parametrize("size", [8, INLINE_BYTES + 1])
def test_a_chord_with_a_fence_equals_one_without(
    app: SkynetCelery, client: redis.Redis, size: int
) -> None:
    # Given a leader
    leader = Leadership(client, "a", 60)
    leader.acquire()
    plan, rows = tiny_plan(2, 2), bytes(size)
    # When it sends a chord, and when one is sent without a fence
    sent = []
    for fence in (leader.fence, ""):
        app.messenger.emit_chord(plan, SpanMessage(5, 9, 0, 1, rows), fence=fence)
        shards = [queued(client, f"stage0.shard{shard}") for shard in range(2)]
        assert [len(messages) for messages in shards] == [1, 1]
        kept = client.get(keys.step_key(5, 9)), client.ttl(keys.step_key(5, 9))
        sent.append(([stable(messages[0]) for messages in shards], kept))
        client.delete(keys.step_key(5, 9))
    # Then both are the same, down to how long the rows are kept
    assert sent[0] == sent[1]
    assert sent[0][1][0] == rows


def test_a_deposed_leader_sends_nothing(app: SkynetCelery, client: redis.Redis) -> None:
    # Given an orchestrator whose lease has passed to another
    leader = Leadership(client, "a", 60)
    leader.acquire()
    old = leader.fence
    leader.resign()
    Leadership(client, "b", 60).acquire()
    # When it sends a chord
    with pytest.raises(Fenced):
        app.messenger.emit_chord(tiny_plan(), SpanMessage(5, 9, 0, 1, b"rows"), fence=old)
    # Then no shard has a message, and no rows are there
    assert client.keys("*stage*") == []
    assert client.exists(keys.step_key(5, 9)) == 0
