"""Requests: tokens by index, one end, and readers that come and go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from skynet import names
from skynet.errors import BadRequest
from skynet.store.connection import connect
from skynet.store.requests import End, Options, Record, Requests, Token
from skynet.store.server import EmbeddedServer

WAIT_S = 30
OPTIONS = Options(
    max_tokens=9, temperature=0.5, top_k=3, top_p=0.9, seed=2**64 - 1, stop=("a", "b")
)


@pytest.fixture
def requests(client: redis.Redis) -> Requests:
    return Requests(client, expires_s=1000)


def new(requests: Requests, name: str = "r1") -> Record:
    record = Record(name, (1, 2, 70_000), OPTIONS, 10.25, 1e12)
    requests.create(record)
    return record


def test_a_record_comes_back_as_it_was(requests: Requests) -> None:
    # Given a record
    record = new(requests)
    # When it is read
    found = requests.read("r1")
    # Then it is the same, with its place in the queue
    assert found is not None
    assert (found.prompt, found.options) == (record.prompt, OPTIONS)
    assert (found.created, found.deadline, found.state) == (10.25, 1e12, "waiting")
    assert (found.emitted, found.arrival, found.cancelled, found.end) == (0, 1, False, None)
    assert requests.read("nobody") is None


def test_open_requests_are_listed_first_come_first(requests: Requests) -> None:
    # Given requests whose names are not in order
    for name in ("z", "a", "m"):
        new(requests, name)
    assert (requests.open_ids(), requests.num_open()) == (["z", "a", "m"], 3)
    # When one ends and one is forgotten
    requests.finish("a", End(finish_reason="stop"))
    requests.forget("z")
    # Then the rest is open
    assert requests.open_ids() == ["m"]


def test_a_token_is_appended_only_after_the_one_before(requests: Requests) -> None:
    # Given a request
    new(requests)
    # When tokens come twice, too early, and right
    replies = [
        requests.append([("r1", Token(index, 5 + index, "x"))])[0] for index in (1, 0, 0, 2, 1, 0)
    ]
    # Then each index is there once, in order
    assert replies == [0, 1, 0, 0, 1, 0]
    assert requests.emitted_tokens("r1") == [5, 6]
    found = requests.read("r1")
    assert found is not None
    assert found.emitted == 2


def test_many_requests_are_appended_to_at_once(requests: Requests) -> None:
    # Given three requests: one goes on, one has ended, one is unknown
    new(requests, "on")
    new(requests, "over")
    requests.finish("over", End(finish_reason="stop"))
    # When each gets a token / Then only the first takes it
    tokens = [(name, Token(0, 7, "x")) for name in ("over", "on", "unknown")]
    assert requests.append(tokens) == [0, 1, 0]
    assert requests.emitted_tokens("over") == []
    assert requests.client.exists(names.tokens_key("unknown")) == 0


def test_two_writers_never_append_the_same_index(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given two orchestrators that both think the request is theirs
    new(Requests(client, 1000))

    def write() -> int:
        with connect(server.url) as own:
            mine = Requests(own, 1000)
            return sum(mine.append([("r1", Token(index, index, ""))])[0] for index in range(200))

    # When both write the same tokens
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write), pool.submit(write)]
        won = sum(writer.result(WAIT_S) for writer in writers)
    # Then each index is there once
    assert won == 200
    assert Requests(client, 1000).emitted_tokens("r1") == list(range(200))


def test_a_request_ends_once_and_then_expires(requests: Requests) -> None:
    # Given a request with a token
    new(requests)
    requests.append([("r1", Token(0, 5, "x"))])
    # When it ends twice, differently
    assert requests.finish("r1", End(text="rest", finish_reason="length"))
    assert not requests.finish("r1", End(error="ShardLost", message="gone"))
    # Then the first end counts, and nothing comes after it
    assert requests.append([("r1", Token(1, 6, "y"))]) == [0]
    found = requests.read("r1")
    assert found is not None
    assert found.end is not None
    assert (found.state, found.end["finish_reason"], found.end["error"]) == ("done", "length", "")
    for key in (names.request_key("r1"), names.tokens_key("r1")):
        assert 0 < requests.client.ttl(key) <= 1000  # type: ignore[operator]
    assert not requests.finish("unknown", End())


def test_a_stream_gives_tokens_from_an_index_and_then_the_end(requests: Requests) -> None:
    # Given an answer of three tokens
    new(requests)
    tokens = [Token(0, 5, "né"), Token(1, 6, ""), Token(2, 7, "\n")]
    for token in tokens:
        requests.append([("r1", token)])
    requests.finish("r1", End(text="!", finish_reason="stop", timings={"total_s": 1.5}))
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
    reading = threading.Barrier(4)

    def read(start: int) -> list[Token | End]:
        with connect(server.url) as own:
            reading.wait(WAIT_S)
            return list(Requests(own, 1000).stream("r1", start, WAIT_S))

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, start) for start in (0, 0, 5)]
        # When tokens come while they read
        reading.wait(WAIT_S)
        tokens = [Token(index, index, f"{index} ") for index in range(300)]
        for token in tokens:
            requests.append([("r1", token)])
        end = End(finish_reason="length")
        requests.finish("r1", end)
        # Then each sees all of them, once, in order
        found = [reader.result(WAIT_S) for reader in readers]
    assert found == [[*tokens, end], [*tokens, end], [*tokens[5:], end]]


def test_a_note_to_cancel_is_told_with_the_next_token(requests: Requests) -> None:
    # Given a request that runs
    new(requests)
    assert requests.append([("r1", Token(0, 5, ""))]) == [1]
    # When somebody asks to cancel it
    assert requests.ask_cancel("r1")
    # Then the next token is taken and the note told
    assert requests.append([("r1", Token(1, 5, ""))]) == [-1]
    found = requests.read("r1")
    assert found is not None
    assert found.cancelled
    # And one that has ended or never was cannot be cancelled
    requests.finish("r1", End(error="RequestCancelled"))
    assert not requests.ask_cancel("r1")
    assert not requests.ask_cancel("unknown")
    assert requests.read("unknown") is None


def test_a_stream_without_tokens_ends_by_its_timeout(requests: Requests) -> None:
    # Given a request nobody answers, and one nobody made
    new(requests)
    # Then a reader of each gets the reason
    with pytest.raises(TimeoutError, match="r1: no token"):
        list(requests.stream("r1", timeout_s=0.1))
    with pytest.raises(BadRequest, match="unknown is unknown here"):
        list(requests.stream("unknown", timeout_s=0.1))
