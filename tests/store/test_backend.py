"""Part-returns: counted by shard, complete once, failed once, despite duplicates and late parts."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
import redis
from celery.app.trace import build_tracer
from celery.backends.redis import RedisBackend
from celery.exceptions import Ignore
from chord_cases import queued, tiny_plan

from skynet.chords.app import SkynetCelery
from skynet.chords.messenger import body_signature
from skynet.errors import PeerLost
from skynet.planning.ranges import Range
from skynet.store.resp import command
from skynet.wire import keys
from skynet.wire.step import Part

LAST = Range(3, 4)


class Shards:
    """Shard tasks on Celery's tracer: a message in, and the backend's response."""

    def __init__(self, app: SkynetCelery, num_shards: int, span: Range = LAST) -> None:
        self.results: dict[int, Any] = {}
        self.advanced: list[list[Any]] = []
        self.num_shards = num_shards
        self.take(span)
        results, advanced = self.results, self.advanced
        app.finalize()
        for name in (keys.RUN_SPAN_TASK, keys.ADVANCE_TASK):
            app.tasks.pop(name, None)  # the real ones, if another test has imported them

        @app.task(name=keys.RUN_SPAN_TASK, bind=True, ignore_result=True, shared=False)
        def run_span(self: Any) -> Any:
            result = results[self.request.group_index]
            if isinstance(result, Exception):
                raise result
            return result

        @app.task(name=keys.ADVANCE_TASK, ignore_result=True, send_events=False, shared=False)
        def advance(*args: Any) -> None:
            advanced.append(list(args))
            if args[0] == [b"broken"]:
                raise ValueError("a broken sum")

        self.trace = build_tracer(run_span.name, run_span, app=app, propagate=False)

    def take(self, span: Range) -> None:
        """Their next messages are of this span."""
        plan = tiny_plan(2, self.num_shards)
        self.body = body_signature(plan, 7, span, self.num_shards, 0.25)
        self.group = keys.chord_id(5, 7, span.start)

    def run(self, shard: int, result: Any, group: str = "") -> None:
        """The shard's worker gets its message and runs it."""
        self.results[shard] = result
        request = {
            "id": f"id-{shard}",
            "group": group or self.group,
            "group_index": shard,
            "chord": self.body,
            "ignore_result": True,
            "delivery_info": {"routing_key": f"stage0.shard{shard}"},
            "is_eager": False,
        }
        self.trace(f"id-{shard}", (), {}, request)


def part(number: float) -> Part:
    return Part(compute_s=number)


def finished(client: redis.Redis) -> list[list[float]]:
    """The bodies that were sent: each one's parts, by what they hold."""
    bodies = []
    for message in queued(client, keys.ORCHESTRATOR_QUEUE):
        assert message["headers"]["task"] == keys.FINISH_STEP_TASK
        parts, *args = message["body"][0]
        assert args == [5, 7, 4, 0.25, ""]
        bodies.append([Part.decode(data).compute_s for data in parts])
    return bodies


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_last_part_sends_the_body_with_all_parts_by_shard(
    app: SkynetCelery, client: redis.Redis, order: tuple[int, ...]
) -> None:
    # Given three shards, whose tasks ignore their results
    shards = Shards(app, 3)
    # When they return in any order
    for shard in order[:2]:
        shards.run(shard, part(shard))
        assert client.llen(keys.queue_key(keys.ORCHESTRATOR_QUEUE)) == 0
    shards.run(order[2], part(order[2]))
    # Then the body has the parts in the order of the shards
    assert finished(client) == [[0, 1, 2]]
    # And Celery has stored no result; what is left expires
    left = client.keys("*")
    assert left == [keys.chord_key(5, 7).encode()]
    assert 0 < client.pttl(left[0]) <= 60_000  # type: ignore[index, operator]


def test_a_duplicate_does_not_complete_a_chord(app: SkynetCelery, client: redis.Redis) -> None:
    # Given one shard's part, three times
    shards = Shards(app, 2)
    for _ in range(3):
        shards.run(1, part(1))
    assert finished(client) == []
    # When the other's comes, and then both again
    shards.run(0, part(0))
    shards.run(1, part(1))
    shards.run(0, part(0))
    # Then the body was sent once
    assert finished(client) == [[0, 1]]


def test_one_shard_alone_is_a_chord(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a stage of one shard / When its part comes, twice
    shards = Shards(app, 1)
    shards.run(0, part(3))
    shards.run(0, part(3))
    # Then the body is sent, once
    assert finished(client) == [[3]]


def test_chords_do_not_mix(app: SkynetCelery, client: redis.Redis) -> None:
    # Given parts of two chords / When each has one of two
    shards = Shards(app, 2)
    shards.run(0, part(0))
    shards.body["args"][1] = 8
    shards.run(1, part(1), group="5.8.3")
    # Then none is complete
    assert finished(client) == []


def test_parts_of_earlier_chords_of_a_step_change_nothing(
    app: SkynetCelery, client: redis.Redis
) -> None:
    # Given a step of four chords of one layer
    shards = Shards(app, 2)
    for layer in range(4):
        # When parts of the chord before come again, among this chord's, which come twice
        for shard in (1, 0):
            shards.take(Range(max(0, layer - 1), max(1, layer)))
            shards.run(shard, part(9)) if layer else None
            shards.take(Range(layer, layer + 1))
            shards.run(shard, part(layer))
            shards.run(shard, part(layer))
    # Then each chord was completed once, with its parts
    sums = [[Part.decode(data).compute_s for data in parts] for parts, *_ in shards.advanced]
    assert sums == [[0, 0], [1, 1], [2, 2]]
    assert finished(client) == [[3, 3]]
    # And one key is left of the step, which expires
    assert client.keys("*") == [keys.chord_key(5, 7).encode()]


def test_a_failed_part_ends_the_step_at_once(app: SkynetCelery, client: redis.Redis) -> None:
    # Given three shards, one has returned
    shards = Shards(app, 3)
    shards.run(0, part(0))
    # When another fails, then the third fails too, and the first comes again
    shards.run(1, PeerLost("stage0.shard1, sum 4: no partial"))
    shards.run(2, ValueError("later"))
    shards.run(0, part(0))
    # Then the orchestrator is told once, with the first cause
    (message,) = queued(client, keys.ORCHESTRATOR_QUEUE)
    assert message["headers"]["task"] == keys.FAIL_STEP_TASK
    assert message["body"][0] == [5, 7, "PeerLost", "stage0.shard1, sum 4: no partial", [], ""]


def test_any_other_error_is_a_failed_shard(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a shard whose code is broken
    Shards(app, 2).run(0, KeyError("weights"))
    # Then the orchestrator is told of it
    (message,) = queued(client, keys.ORCHESTRATOR_QUEUE)
    assert message["body"][0] == [5, 7, "ShardFailed", "'weights'", [], ""]


def test_an_ignored_message_returns_no_part(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a shard that drops a stale message
    shards = Shards(app, 2)
    shards.run(0, Ignore())
    # When the other returns / Then the chord waits
    shards.run(1, part(1))
    assert finished(client) == []


def test_an_inner_body_runs_where_the_last_part_came(
    app: SkynetCelery, client: redis.Redis
) -> None:
    # Given a chord of an inner span
    shards = Shards(app, 2, Range(0, 1))
    # When all parts are there
    shards.run(1, part(1))
    assert shards.advanced == []
    shards.run(0, part(0))
    # Then its body has run, with no message
    ((parts, *args),) = shards.advanced
    assert [Part.decode(data).compute_s for data in parts] == [0, 1]
    assert args == [5, 7, 1, 0.25, ""]
    assert client.keys("*") == [keys.chord_key(5, 7).encode()]


def test_an_inner_body_that_fails_fails_the_step(app: SkynetCelery, client: redis.Redis) -> None:
    # Given an inner body that cannot make a sum of its parts
    class Broken(Part):
        def encode(self) -> bytes:
            return b"broken"

    shards = Shards(app, 1, Range(0, 1))
    # When it runs / Then the orchestrator is told
    shards.run(0, Broken())
    (message,) = queued(client, keys.ORCHESTRATOR_QUEUE)
    assert message["headers"]["task"] == keys.FAIL_STEP_TASK
    assert message["body"][0] == [5, 7, "ShardFailed", "a broken sum", [], ""]


def test_a_traced_inner_body_is_a_task_of_its_own(app: SkynetCelery, client: redis.Redis) -> None:
    # Given an app that traces
    shards = Shards(app, 1, Range(0, 1))
    app.tasks[keys.ADVANCE_TASK].send_events = True
    # When the part comes
    shards.run(0, part(0))
    # Then the body waits in the queue of the shard that brought the last
    (message,) = queued(client, "stage0.shard0")
    assert message["headers"]["task"] == keys.ADVANCE_TASK
    assert shards.advanced == []


def test_a_foreign_chord_uses_celerys_backend(
    app: SkynetCelery, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a chord with a body of another application
    seen: list[tuple[str, str]] = []

    def stock(self: Any, request: Any, state: str, result: Any, *_: Any, **__: Any) -> None:
        seen.append((request.group, state))

    monkeypatch.setattr(RedisBackend, "on_chord_part_return", stock)
    shards = Shards(app, 2)
    shards.body = {"task": "somebody.else", "args": [], "kwargs": {}, "options": {}}
    # When a part comes / Then Celery's code has it
    shards.run(0, 5, group="theirs")
    assert seen == [("theirs", "SUCCESS")]
    assert client.keys("*chord*") == []


def test_a_connection_that_breaks_is_opened_again(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a part that has come, and a connection that Redis closes then
    shards = Shards(app, 2)
    shards.run(0, part(0))
    (number,) = app.messenger.connection.call([command(b"CLIENT", b"ID")])
    client.client_kill_filter(_id=str(number))
    # When the last part comes
    shards.run(1, part(1))
    # Then the body is sent all the same
    assert finished(client) == [[0, 1]]


def test_a_redis_that_has_forgotten_the_script_is_given_it(
    app: SkynetCelery, client: redis.Redis
) -> None:
    # Given a part that has come, and a Redis that was restarted since, with its data
    shards = Shards(app, 2)
    shards.run(0, part(0))
    client.script_flush()
    # When the last part comes / Then the body is sent
    shards.run(1, part(1))
    assert finished(client) == [[0, 1]]


def test_redis_errors_in_a_part_return_do_not_kill_the_worker(
    app: SkynetCelery, client: redis.Redis
) -> None:
    # Given a chord's key of another type
    client.set(keys.chord_key(5, 7), "?")
    # When a part comes / Then it is lost with a log line; the step's deadline finds it
    Shards(app, 1).run(0, part(0))
    assert finished(client) == []


def test_messages_are_never_unpickled(app: SkynetCelery, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given what an attacker would send
    from kombu.exceptions import ContentDisallowed
    from kombu.serialization import loads

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("pickle was called")

    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    accepted = app.conf.accept_content
    # When a message says that it is a pickle / Then it is refused unread
    assert set(accepted) == {"json", keys.SERIALIZER}
    with pytest.raises(ContentDisallowed):
        loads(b"\x80\x04.", "application/x-python-serialize", "binary", accept=accepted)
    assert app.conf.result_accept_content == ["json"]
