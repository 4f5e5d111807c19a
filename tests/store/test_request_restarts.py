"""Answers whose Redis goes away and comes back, with its data, with less of it, or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest
from restart_cases import END, TOKENS, append, lasting, one_waiting

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import ClusterUnreachable, PeerLost, RequestLost, SkynetError
from skynet.local.server import EmbeddedServer
from skynet.request.completion import Completion
from skynet.request.record import End, Options, Record, Token
from skynet.store.connection import connect
from skynet.store.requests import Requests
from skynet.wire import keys

WAIT_S = 30


@pytest.fixture
def requests(own_server: EmbeddedServer) -> Iterator[Requests]:
    """One request, r1, waiting."""
    with one_waiting(own_server) as requests:
        yield requests


@pytest.fixture
def user(own_server: EmbeddedServer) -> Iterator[Client]:
    user = Client(own_server.url)
    yield user
    user.close()


def away(server: EmbeddedServer, then: Callable[[], object] = lambda: None) -> None:
    """Stop the server, do something, and start it again."""
    server.stop()
    then()
    server.start()


def test_a_reader_goes_on_after_a_restart(own_server: EmbeddedServer, requests: Requests) -> None:
    # Given a reader with two tokens
    append(requests, *TOKENS[:2])
    with connect(own_server.url) as connection:
        reader = Requests(connection, 1000).stream("r1", timeout_s=WAIT_S)
        assert [next(reader), next(reader)] == TOKENS[:2]
        # When Redis restarts, and the rest comes
        lasting(requests)
        away(own_server)
        append(requests, *TOKENS[2:])
        requests.writer.finish("r1", END)
        # Then the reader has each token once
        assert list(reader) == [*TOKENS[2:], END]


def test_a_reader_that_waits_while_redis_is_away_goes_on(
    own_server: EmbeddedServer, requests: Requests
) -> None:
    # Given a reader in another thread, which waits for its second token
    append(requests, TOKENS[0])
    lasting(requests)
    seen: Queue[Token | End] = Queue()

    def read() -> None:
        with connect(own_server.url) as connection:
            for item in Requests(connection, 1000).stream("r1", timeout_s=WAIT_S):
                seen.put(item)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(read)
        assert seen.get(timeout=WAIT_S) == TOKENS[0]
        # When Redis goes and comes back, and the rest is made
        away(own_server)
        append(requests, *TOKENS[1:])
        requests.writer.finish("r1", END)
        future.result(WAIT_S)
    # Then the reader has each token once
    assert [seen.get_nowait() for _ in range(4)] == [*TOKENS[1:], END]


def test_tokens_that_redis_forgot_and_that_are_made_again_are_read_once(
    own_server: EmbeddedServer, requests: Requests
) -> None:
    # Given a reader that has seen a token that is not saved
    append(requests, *TOKENS[:2])
    lasting(requests)
    append(requests, TOKENS[2])
    with connect(own_server.url) as connection:
        reader = Requests(connection, 1000).stream("r1", timeout_s=WAIT_S)
        assert [next(reader) for _ in range(3)] == TOKENS[:3]
        # When Redis restarts without it, and it is made again
        away(own_server)
        assert [token.id for token in requests.emitted("r1")] == [10, 11]
        append(requests, *TOKENS[2:])
        requests.writer.finish("r1", END)
        # Then the reader does not see it again
        assert list(reader) == [TOKENS[3], END]


def test_entries_whose_ids_went_back_are_read(requests: Requests) -> None:
    # Given a reader that has read an entry
    append(requests, *TOKENS[:2])
    reader = requests.stream("r1", timeout_s=WAIT_S)
    assert [next(reader), next(reader)] == TOKENS[:2]
    # When the stream is there again under ids of a clock that is behind
    key = keys.tokens_key("r1")
    requests.client.delete(key)
    for token in TOKENS[:3]:
        fields: dict[str, str | int] = {"i": token.index, "t": token.id, "p": token.text}
        requests.client.xadd(key, fields, id=f"1-{token.index + 1}")  # type: ignore[arg-type]
    requests.client.hset(keys.request_key("r1"), "emitted", 3)
    # Then the reader gets the unread tokens
    assert next(reader) == TOKENS[2]


def test_a_redis_without_its_data_is_reported(
    own_server: EmbeddedServer, requests: Requests, user: Client
) -> None:
    # Given a request that is read
    append(requests, TOKENS[0])
    reader = Generation("r1", user).tokens(timeout=WAIT_S)
    assert next(reader) == TOKENS[0]
    # When Redis restarts empty / Then readers and waiting callers get an error
    away(own_server)
    with pytest.raises(RequestLost, match="restart or failover; submit it again"):
        next(reader)
    with pytest.raises(RequestLost):
        Generation("r1", user).get(timeout=WAIT_S)


def test_a_redis_that_stays_away_is_named_when_the_time_is_over(
    own_server: EmbeddedServer, requests: Requests, user: Client
) -> None:
    # Given a reader
    append(requests, TOKENS[0])
    reader = Generation("r1", user).tokens(timeout=0.3)
    assert next(reader) == TOKENS[0]
    # When Redis goes and does not come back / Then
    own_server.stop()
    with pytest.raises(ClusterUnreachable, match=str(own_server.socket)):
        next(reader)
    with pytest.raises(ClusterUnreachable):
        Generation("r1", user).get(timeout=0.3)


def test_get_waits_through_a_restart(
    own_server: EmbeddedServer, requests: Requests, user: Client
) -> None:
    # Given a caller that waits for an answer, and an answer half done
    append(requests, *TOKENS[:2])
    lasting(requests)
    reattached = Generation("r1", user)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reattached.get, timeout=WAIT_S)
        # When Redis restarts, and no pub/sub message tells the end
        away(own_server)
        append(requests, *TOKENS[2:])
        requests.writer.finish("r1", END)
        # Then the whole answer is there, then and later
        expected = Completion("0 1 2 3 !", [10, 11, 12, 13], 3, "stop", {"total_s": 1.5})
        assert waiting.result(WAIT_S) == expected
    assert reattached.get() == expected


def test_attaching_to_a_request_waits_for_redis(
    own_server: EmbeddedServer, requests: Requests, user: Client
) -> None:
    # Given an answer that is done, and a Redis that is away
    append(requests, *TOKENS)
    requests.writer.finish("r1", END)
    lasting(requests)
    own_server.stop()
    with ThreadPoolExecutor(1) as pool:
        # When a caller asks for the answer, without a time limit
        waiting = pool.submit(Generation("r1", user).get)
        own_server.start()
        # Then it is there as soon as Redis is
        assert waiting.result(WAIT_S).token_ids == [10, 11, 12, 13]


def test_get_raises_what_the_request_ended_with(requests: Requests, user: Client) -> None:
    # Given a request that failed
    requests.writer.finish("r1", End(error="PeerLost", message="stage0.shard1 was too late"))
    # When it is waited for / Then
    with pytest.raises(PeerLost, match=r"stage0\.shard1 was too late"):
        Generation("r1", user).get()
    returned = Generation("r1", user).get(propagate=False)
    assert isinstance(returned, PeerLost)
    # And an unknown class is a SkynetError
    requests.create(Record("r2", (1,), Options(), 0.0, 0.0))
    requests.writer.finish("r2", End(error="OfTheFuture", message="new"))
    with pytest.raises(SkynetError, match="new"):
        Generation("r2", user).get()


def test_a_closed_connection_is_opened_again(
    own_server: EmbeddedServer, requests: Requests
) -> None:
    # Given a reader
    append(requests, TOKENS[0])
    with connect(own_server.url) as connection:
        reader = Requests(connection, 1000).stream("r1", timeout_s=WAIT_S)
        assert next(reader) == TOKENS[0]
        # When its connections are killed between two tokens
        assert requests.client.client_kill_filter(_type="normal", skipme=True)
        append(requests, TOKENS[1])
        # Then it reads the next
        assert next(reader) == TOKENS[1]
