"""Requests: tokens by index, one end, and readers that come and go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from skynet.errors import Fenced, QueueFull, RequestLost, SkynetError
from skynet.local.server import EmbeddedServer
from skynet.request.record import End, Logprobs, Options, Record, Token
from skynet.store.connection import connect
from skynet.store.requests import Requests
from skynet.wire import keys

WAIT_S = 30
OPTIONS = Options(
    max_tokens=9,
    temperature=0.5,
    top_k=3,
    top_p=0.9,
    seed=2**64 - 1,
    stop=("a", "b"),
    bad_words_ids=((1, 2), (3,)),
    forced_eos_token_id=(4,),
    logprobs=2,
)


@pytest.fixture
def requests(client: redis.Redis) -> Requests:
    return Requests(client, expires_s=1000)


def new(requests: Requests, name: str = "r1", limit: int | None = None) -> Record:
    record = Record(name, (1, 2, 70_000), OPTIONS, 10.25, 1e12, priority=7, sample_group="f")
    requests.create(record, limit)
    return record


def test_a_record_comes_back_as_it_was(requests: Requests) -> None:
    # Given a record
    record = new(requests)
    # When it is read
    stored = requests.read("r1")
    # Then it is the same, with its place in the queue
    assert stored is not None
    assert (stored.prompt, stored.options) == (record.prompt, OPTIONS)
    assert (stored.created, stored.deadline, stored.state) == (10.25, 1e12, "waiting")
    assert (stored.emitted, stored.arrival, stored.cancelled, stored.end) == (0, 1, False, None)
    assert (stored.priority, stored.sample_group) == (7, "f")
    assert (stored.started_at, stored.first_token_at, stored.last_token_at) == (0, 0, 0)
    assert requests.read("nobody") is None


def test_open_requests_are_listed_first_come_first(requests: Requests) -> None:
    # Given requests whose names are not in order
    for name in ("z", "a", "m"):
        new(requests, name)
    assert (requests.open_ids(), requests.num_open()) == (["z", "a", "m"], 3)
    # When one ends and one is forgotten
    requests.writer.finish("a", End(finish_reason="stop"))
    requests.forget("z")
    # Then the rest is open
    assert requests.open_ids() == ["m"]


def test_a_token_is_appended_only_after_the_one_before(requests: Requests) -> None:
    # Given a request
    new(requests)
    # When tokens come twice, too early, and right
    replies = [
        requests.writer.append([("r1", Token(index, 5 + index, "x"))])[0]
        for index in (1, 0, 0, 2, 1, 0)
    ]
    # Then each index is there once, in order
    assert replies == [0, 1, 0, 0, 1, 0]
    assert [token.id for token in requests.emitted("r1")] == [5, 6]
    stored = requests.read("r1")
    assert stored is not None
    assert stored.emitted == 2


def test_many_requests_are_appended_to_at_once(requests: Requests) -> None:
    # Given three requests: one goes on, one has ended, one is unknown
    new(requests, "on")
    new(requests, "over")
    requests.writer.finish("over", End(finish_reason="stop"))
    # When each gets a token / Then only the first takes it
    tokens = [(name, Token(0, 7, "x")) for name in ("over", "on", "unknown")]
    assert requests.writer.append(tokens) == [0, 1, 0]
    assert [token.id for token in requests.emitted("over")] == []
    assert requests.client.exists(keys.tokens_key("unknown")) == 0


def test_two_writers_never_append_the_same_index(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given two orchestrators that both act for the request
    new(Requests(client, 1000))

    def write() -> int:
        with connect(server.url) as connection:
            mine = Requests(connection, 1000)
            return sum(
                mine.writer.append([("r1", Token(index, index, ""))])[0] for index in range(200)
            )

    # When both write the same tokens
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write), pool.submit(write)]
        won = sum(writer.result(WAIT_S) for writer in writers)
    # Then each index is there once
    assert won == 200
    assert [token.id for token in Requests(client, 1000).emitted("r1")] == list(range(200))


def test_a_request_ends_once_and_then_expires(requests: Requests) -> None:
    # Given a request with a token
    new(requests)
    requests.writer.append([("r1", Token(0, 5, "x"))])
    # When it ends twice, differently
    assert requests.writer.finish("r1", End(text="rest", finish_reason="length"))
    assert not requests.writer.finish("r1", End(error="ShardLost", message="gone"))
    # Then the first end counts, and nothing comes after it
    assert requests.writer.append([("r1", Token(1, 6, "y"))]) == [0]
    stored = requests.read("r1")
    assert stored is not None
    assert stored.end is not None
    assert (stored.state, stored.end["finish_reason"], stored.end["error"]) == (
        "done",
        "length",
        "",
    )
    for key in (keys.request_key("r1"), keys.tokens_key("r1"), keys.end_key("r1")):
        assert 0 < requests.client.ttl(key) <= 1000
    assert not requests.writer.finish("unknown", End())


def test_a_stream_gives_tokens_from_an_index_and_then_the_end(requests: Requests) -> None:
    # Given an answer of three tokens
    new(requests)
    tokens = [Token(0, 5, "né"), Token(1, 6, ""), Token(2, 7, "\n")]
    for token in tokens:
        requests.writer.append([("r1", token)])
    requests.writer.finish("r1", End(text="!", finish_reason="stop", timings={"total_s": 1.5}))
    # When it is read from any index, as often as wanted / Then the rest comes
    end = End("!", "stop", "", "", {"total_s": 1.5})
    for start in (0, 2, 3, 0):
        assert list(requests.stream("r1", start)) == [*tokens[start:], end]


def test_readers_that_come_before_during_and_after_see_the_same(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given readers that wait for a request that has no token yet
    requests = Requests(client, 1000)
    new(requests)
    readers_ready = threading.Barrier(4)

    def read(start: int) -> list[Token | End]:
        with connect(server.url) as connection:
            readers_ready.wait(WAIT_S)
            return list(Requests(connection, 1000).stream("r1", start, WAIT_S))

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, start) for start in (0, 0, 5)]
        # When tokens come while they read
        readers_ready.wait(WAIT_S)
        tokens = [Token(index, index, f"{index} ") for index in range(300)]
        for token in tokens:
            requests.writer.append([("r1", token)])
        end = End(finish_reason="length")
        requests.writer.finish("r1", end)
        # Then each sees all of them, once, in order
        answers = [reader.result(WAIT_S) for reader in readers]
    assert answers == [[*tokens, end], [*tokens, end], [*tokens[5:], end]]


def test_a_note_to_cancel_is_told_with_the_next_token(requests: Requests) -> None:
    # Given a request that runs
    new(requests)
    assert requests.writer.append([("r1", Token(0, 5, ""))]) == [1]
    # When a client cancels it
    assert requests.ask_cancel("r1")
    # Then the next token is taken and the note told
    assert requests.writer.append([("r1", Token(1, 5, ""))]) == [-1]
    stored = requests.read("r1")
    assert stored is not None
    assert stored.cancelled
    # And one that has ended or never was cannot be cancelled
    requests.writer.finish("r1", End(error="RequestCancelled"))
    assert not requests.ask_cancel("r1")
    assert not requests.ask_cancel("unknown")
    assert requests.read("unknown") is None


def test_a_stream_without_tokens_ends_by_its_timeout(requests: Requests) -> None:
    # Given a request without an answer, and an unknown one
    new(requests)
    # Then a reader of each gets the reason
    with pytest.raises(TimeoutError, match="r1: no token"):
        list(requests.stream("r1", timeout_s=0.1))
    with pytest.raises(RequestLost, match=r"unknown is not in Redis: .*; submit it again"):
        list(requests.stream("unknown", timeout_s=0.1))


def test_an_old_record_has_defaults_for_missing_fields(
    requests: Requests, client: redis.Redis
) -> None:
    # Given a record that was written before there were families and most options
    new(requests)
    client.hset(keys.request_key("r1"), "options", '{"max_tokens": 5, "stop": ["x"]}')
    client.hdel(keys.request_key("r1"), "family")
    # When it is read / Then the rest is as if nothing had been asked
    stored = requests.read("r1")
    assert stored is not None
    assert (stored.options, stored.sample_group) == (Options(max_tokens=5, stop=("x",)), "")


def test_log_probabilities_come_back_with_their_token(requests: Requests) -> None:
    # Given a token with and one without them
    new(requests)
    tokens = [Token(0, 5, "a", Logprobs(-0.25, ((5, -0.25), (9, -1.5)))), Token(1, 6, "b")]
    for token in tokens:
        assert requests.writer.append([("r1", token)]) == [1]
    requests.writer.finish("r1", End(finish_reason="stop"))
    # Then both are read as they were
    assert requests.emitted("r1") == tokens
    assert list(requests.stream("r1", 0, WAIT_S))[:2] == tokens


def test_several_records_are_taken_together_or_not_at_all(requests: Requests) -> None:
    # Given three records and room for four
    made = [Record(name, (1,), OPTIONS, 1.0, 2.0, sample_group="a") for name in "abc"]
    requests.create_all(made, limit=4)
    # Then they are there in their order
    assert requests.open_ids() == ["a", "b", "c"]
    arrivals = [record.arrival for record in map(requests.read, "abc") if record]
    assert arrivals == [1, 2, 3]
    # When two more come / Then neither is taken
    with pytest.raises(QueueFull, match="3 requests are unfinished, the limit is 4"):
        requests.create_all([Record(name, (1,), OPTIONS, 1.0, 2.0) for name in "de"], limit=4)
    assert requests.open_ids() == ["a", "b", "c"]
    assert requests.read("d") is None


def test_a_full_queue_takes_no_more(requests: Requests) -> None:
    # Given as many unfinished requests as may be
    for name in ("a", "b"):
        new(requests, name, limit=2)
    # When another one comes / Then it is refused, and nothing of it is written
    with pytest.raises(QueueFull, match=r"2 requests are unfinished.* SKYNET_MAX_WAITING"):
        new(requests, "c", limit=2)
    assert requests.read("c") is None
    assert requests.open_ids() == ["a", "b"]
    # And when one has ended there is room
    requests.writer.finish("a", End(finish_reason="stop"))
    new(requests, "c", limit=2)
    assert requests.open_ids() == ["b", "c"]


def test_a_queue_is_never_overfilled_by_many_at_once(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given room for 10, and 4 clients
    together = threading.Barrier(4)

    def submit(number: int) -> int:
        taken = 0
        with connect(server.url) as connection:
            together.wait(WAIT_S)
            for index in range(10):
                try:
                    new(Requests(connection, 1000), f"{number}.{index}", limit=10)
                    taken += 1
                except QueueFull:
                    continue
        return taken

    # When each asks for 10
    with ThreadPoolExecutor(4) as pool:
        taken = sum(pool.map(submit, range(4)))
    # Then 10 are taken
    assert (taken, Requests(client, 1000).num_open()) == (10, 10)


def test_a_deposed_orchestrator_writes_nothing(requests: Requests, client: redis.Redis) -> None:
    # Given a leader with a request
    new(requests)
    client.set(keys.leader_key(), "1:me")
    leader = Requests(client, 1000, fence=lambda: "1:me")
    leader.writer.start(["r1"])
    assert leader.writer.append([("r1", Token(0, 5, "x"))]) == [1]
    # When another one leads, or none does
    for holder in ("2:other", None):
        client.delete(keys.leader_key())
        if holder:
            client.set(keys.leader_key(), holder)
        before = client.hgetall(keys.request_key("r1"))
        # Then all it writes is refused, and nothing has changed
        with pytest.raises(Fenced):
            leader.writer.start(["r1"])
        with pytest.raises(Fenced):
            leader.writer.append([("r1", Token(1, 6, "y"))])
        with pytest.raises(Fenced):
            leader.writer.finish("r1", End(finish_reason="stop"), ("result", b"{}"))
        assert client.hgetall(keys.request_key("r1")) == before
        assert [token.id for token in requests.emitted("r1")] == [5]
        assert client.exists("result", keys.end_key("r1")) == 0


def test_a_writer_without_a_fence_is_refused(requests: Requests) -> None:
    # Given an orchestrator that has given up its lease / Then it writes nothing
    new(requests)
    with pytest.raises(Fenced, match="does not lead"):
        Requests(requests.client, 1000, fence=lambda: "").writer.append([("r1", Token(0, 5, "x"))])
    assert [token.id for token in requests.emitted("r1")] == []


def test_the_end_stores_and_tells_the_result_once(requests: Requests, client: redis.Redis) -> None:
    # Given a subscriber to Celery's result
    new(requests)
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("celery-task-meta-r1")
        listener.get_message(timeout=WAIT_S)
        # When the request ends twice
        assert requests.writer.finish(
            "r1", End(finish_reason="stop"), ("celery-task-meta-r1", b"one")
        )
        assert not requests.writer.finish(
            "r1", End(error="ShardLost"), ("celery-task-meta-r1", b"two")
        )
        client.publish("celery-task-meta-r1", "last")
        # Then the first result is there, for as long as the answer, and was told, alone
        results: list[bytes] = []
        while not results or results[-1] != b"last":
            message = listener.get_message(timeout=WAIT_S)
            assert message is not None
            results.append(message["data"])
    assert results == [b"one", b"last"]
    assert client.get("celery-task-meta-r1") == b"one"
    assert 0 < client.ttl("celery-task-meta-r1") <= 1000


def test_tokens_that_are_known_all_at_once_are_written_with_the_end(
    requests: Requests, client: redis.Redis
) -> None:
    # Given a request whose answer is known when it ends
    new(requests)
    requests.writer.start(["r1"])
    tokens = [Token(0, 5, "a"), Token(1, 6, ""), Token(2, 7, "c")]
    # When it ends / Then readers see the tokens, then the end, and the record counts them
    assert requests.writer.finish("r1", End(finish_reason="stop"), ("result", b"x"), tokens)
    assert list(requests.stream("r1", 1, WAIT_S)) == [*tokens[1:], End(finish_reason="stop")]
    stored = requests.read("r1")
    assert stored is not None
    assert (stored.emitted, stored.state) == (3, "done")
    assert stored.last_token_at > 0
    assert client.get("result") == b"x"
    # And it ends once
    assert not requests.writer.finish("r1", End(finish_reason="length"), None, tokens)
    assert len(requests.emitted("r1")) == 3


def test_an_end_writes_no_token_a_second_time(requests: Requests) -> None:
    # Given a request of which one token was written
    new(requests)
    requests.writer.append([("r1", Token(0, 5, "a"))])
    # When it ends with all of them / Then each is there once
    assert requests.writer.finish("r1", End(), None, [Token(0, 5, "a"), Token(1, 6, "b")])
    assert [token.id for token in requests.emitted("r1")] == [5, 6]


def test_times_are_kept_by_the_clock_of_redis(requests: Requests, client: redis.Redis) -> None:
    # Given Redis's time before
    def redis_time() -> float:
        seconds, microseconds = client.time()
        return float(seconds + microseconds * 1e-6)

    before = redis_time()
    new(requests)
    # When a request starts, twice, and has two tokens
    requests.writer.start(["r1"])
    requests.writer.start(["r1"])
    for index in range(2):
        requests.writer.append([("r1", Token(index, 5, ""))])
    # Then its times are in order, between Redis's time before and after
    stored = requests.read("r1")
    assert stored is not None
    after = redis_time()
    assert before <= stored.started_at <= stored.first_token_at < stored.last_token_at <= after
    assert stored.state == "running"


def test_now_is_the_time_of_redis_without_asking_it_each_time(
    requests: Requests, client: redis.Redis
) -> None:
    # Given the clock, asked once
    first = requests.now()
    seconds, microseconds = client.time()
    assert abs(first - (seconds + microseconds * 1e-6)) < 5
    # When it is asked again and again / Then it goes on, and Redis is not asked
    client.config_resetstat()
    later = [requests.now() for _ in range(100)]
    assert later == sorted(later)
    assert later[0] >= first
    assert "cmdstat_time" not in client.info("commandstats")
    # And an exact time is asked for
    requests.clock.now(exact=True)
    assert client.info("commandstats")["cmdstat_time"]["calls"] == 1


def test_the_end_is_waited_for_without_reading_the_tokens(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given a caller that waits for the end
    requests = Requests(client, 1000)
    new(requests)
    end = End(text="!", finish_reason="stop")
    with connect(server.url) as connection, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Requests(connection, 1000).wait_end, "r1", WAIT_S)
        # When it comes after tokens / Then it is told, then and later
        requests.writer.append([("r1", Token(0, 5, "x"))])
        requests.writer.finish("r1", end)
        assert waiting.result(WAIT_S) == end
    assert requests.wait_end("r1", 0) == end
    # And without one there is a reason
    new(requests, "r2")
    with pytest.raises(TimeoutError):
        requests.wait_end("r2", 0.05)
    with pytest.raises(RequestLost):
        requests.wait_end("unknown", 0.05)


def test_tokens_that_are_missing_are_an_error(requests: Requests, client: redis.Redis) -> None:
    # Given an answer that has lost its second token
    new(requests)
    for index in range(3):
        requests.writer.append([("r1", Token(index, 5 + index, ""))])
    entries: Any = client.xrange(keys.tokens_key("r1"))
    client.xdel(keys.tokens_key("r1"), entries[1][0])
    # When it is read / Then the first comes, and then an error
    reader = requests.stream("r1", timeout_s=WAIT_S)
    assert next(reader) == Token(0, 5, "")
    with pytest.raises(SkynetError, match="r1: token 1 is missing"):
        next(reader)
    # And so it is when nothing follows it
    client.delete(keys.tokens_key("r1"))
    with pytest.raises(SkynetError, match="r1: token 0 is missing"):
        list(requests.stream("r1", timeout_s=WAIT_S))
