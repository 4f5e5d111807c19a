"""The exchange: every shard gets every partial of its step and place, or an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np
import pytest
import redis
import torch

from skynet.errors import NotFinite, PeerLost, WireError
from skynet.local.server import EmbeddedServer
from skynet.store.exchange import Exchange
from skynet.wire import keys
from skynet.wire.frame import BFLOAT16, FLOAT32, Frame
from skynet.worker.all_reduce import AllReduce

WAIT_S = 30


@contextmanager
def shards(
    server: EmbeddedServer, count: int, timeout_s: float = 10
) -> Iterator[tuple[list[Exchange], Callable[..., list[Any]]]]:
    """A stage's exchanges, and a function that runs one call in each, side by side."""
    with ExitStack() as stack:
        exchanges = [
            stack.enter_context(closing(Exchange(server.url, 0, shard, count)))
            for shard in range(count)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        for exchange in exchanges:
            exchange.timeout_s = timeout_s

        def together(call: Callable[[Exchange], Any]) -> list[Any]:
            futures = [pool.submit(call, exchange) for exchange in exchanges]
            return [future.result(WAIT_S) for future in futures]

        yield exchanges, together


def frame(*values: float) -> Frame:
    return Frame.of(np.array([values], np.float32))


def values(partial: Frame) -> list[float]:
    return [float(value) for value in partial.array()[0]]


@pytest.mark.parametrize("count", [2, 3])
def test_every_shard_gets_all_partials_of_every_sum(server: EmbeddedServer, count: int) -> None:
    # Given shards that make many sums one after the other, without waiting for each other
    def run(exchange: Exchange) -> list[list[list[float]]]:
        sums = []
        for position in range(20):
            mine = frame(exchange.shard, position)
            got = exchange.swap(1, 7, position, mine)
            sums.append([values(got[shard]) for shard in sorted(got)])
        return sums

    with shards(server, count) as (_, together):
        # When they exchange
        results = together(run)
    # Then each has each shard's partial of the same sum
    expected = [[[shard, position] for shard in range(count)] for position in range(20)]
    assert results == [expected] * count


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_sum_has_the_same_bits_on_every_shard(
    server: EmbeddedServer, client: redis.Redis, count: int, dtype: str
) -> None:
    # Given partials whose sum depends on the order
    partials = [torch.randn(5, 48, generator=torch.manual_seed(s)) * 10**s for s in range(count)]

    def run(exchange: Exchange) -> list[torch.Tensor]:
        all_reduce = AllReduce(exchange, 1, 9, 0, dtype)
        return [all_reduce(partials[exchange.shard]) for _ in range(3)]

    with shards(server, count) as (_, together):
        # When each shard sums, three times
        results = together(run)
    # Then all have the same bits, those of a sum in shard order
    rounded = dtype == "bfloat16" and count > 1
    expected = torch.zeros(5, 48)
    for partial in partials:
        expected = expected + (partial.bfloat16().float() if rounded else partial)
    for sums in results:
        for total in sums:
            assert total.dtype == torch.float32
            assert torch.equal(total, expected)


def test_bfloat16_partials_travel_as_they_are(server: EmbeddedServer) -> None:
    # Given partials in bfloat16
    partial = torch.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=torch.bfloat16)
    with shards(server, 2) as (_, together):
        # When they are summed
        results = together(lambda exchange: AllReduce(exchange, 1, 10, 0)(partial))
    # Then the sum is float32, of those values
    assert all(torch.equal(total, 2 * partial.float()) for total in results)


def test_a_peer_that_is_silent_is_lost_and_named(server: EmbeddedServer) -> None:
    # Given a peer that never sends
    with shards(server, 3, timeout_s=0.1) as (exchanges, _):
        # When a shard waits for it
        with pytest.raises(PeerLost) as raised:
            exchanges[0].swap(1, 11, 4, frame(1))
    # Then the error names the waiting shard, the all-reduce and the lost peer
    assert "stage0.shard0, sum 4: no partial from stage0.shard1" in str(raised.value)


def test_a_wait_ends_when_the_step_is_given_up(server: EmbeddedServer) -> None:
    # Given a step that was given up
    with shards(server, 2, timeout_s=25) as (exchanges, _):
        asked = threading.Event()
        exchanges[0].still_wanted = asked.is_set
        # When a shard waits / Then it does not wait until its timeout
        with pytest.raises(PeerLost, match="given up"):
            exchanges[0].swap(1, 12, 0, frame(1))
        assert exchanges[0].waited_s < 20


def test_a_peer_that_fails_says_why_at_once(server: EmbeddedServer) -> None:
    # Given a shard that fails before a sum its peer waits for
    with shards(server, 2) as (exchanges, together):

        def run(exchange: Exchange) -> None:
            if exchange.shard == 1:
                exchange.abort(1, 13, 2, PeerLost("out of memory"))
            else:
                exchange.swap(1, 13, 2, frame(1))

        with pytest.raises(PeerLost, match=r"stage0\.shard1 failed: out of memory"):
            together(run)
        # When the next step comes / Then both go on
        results = together(lambda exchange: exchange.swap(1, 14, 0, frame(exchange.shard)))
        assert [values(result[1 - shard]) for shard, result in enumerate(results)] == [[1], [0]]
        assert exchanges[0].waited_s < 10


def test_a_peer_that_finds_nan_passes_its_own_words_on(server: EmbeddedServer) -> None:
    # Given a shard that finds NaN before a sum its peer waits for
    with shards(server, 2) as (exchanges, together):

        def run(exchange: Exchange) -> None:
            if exchange.shard == 1:
                exchange.abort(1, 13, 2, NotFinite("stage0.shard1: 3 NaN", (0,)))
            else:
                exchange.swap(1, 13, 2, frame(1))

        # When / Then the peer fails likewise, whoever is heard first
        with pytest.raises(NotFinite, match=r"^stage0\.shard1: 3 NaN$"):
            together(run)
        assert exchanges[0].waited_s < 10


@pytest.mark.parametrize(
    "other",
    [
        frame(1, 2, 3),
        Frame(FLOAT32, 2, 1, bytes(8)),
        Frame(BFLOAT16, 1, 2, bytes(4)),
        Frame(FLOAT32, 1, 2, bytes(4)),
    ],
    ids=["columns", "rows", "kind", "truncated"],
)
def test_a_partial_of_another_shape_is_an_error(server: EmbeddedServer, other: Frame) -> None:
    # Given a peer with another idea of the step's shape
    def run(exchange: Exchange) -> str:
        mine = other if exchange.shard == 1 else frame(1, 2)
        try:
            exchange.swap(1, id(other), 0, mine)
        except WireError as error:
            return str(error)
        return ""

    with shards(server, 2) as (_, together):
        # When they exchange
        errors = together(run)
    # Then the error says what was expected and what came
    assert "stage0.shard1 sent" in errors[0]
    assert "1x2 float32" in errors[0]


def test_bytes_that_are_no_partial_are_refused(server: EmbeddedServer, client: redis.Redis) -> None:
    # Given something else in a shard's inbox
    client.lpush(keys.exchange_format(0) % (1, 15, 0, 1, 0), b"?")
    with shards(server, 2) as (exchanges, _):
        # When it is popped / Then it is no partial
        with pytest.raises(WireError, match="malformed partial"):
            exchanges[0].swap(1, 15, 0, frame(1))


def test_a_late_push_is_never_taken_for_another_step(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given what a peer pushed for other steps, places and epochs
    with shards(server, 2, timeout_s=0.1) as (exchanges, together):
        for epoch, step, position in ((1, 19, 0), (1, 20, 1), (2, 20, 0)):
            with pytest.raises(PeerLost):
                exchanges[1].swap(epoch, step, position, frame(666))
        # When a step is exchanged
        for exchange in exchanges:
            exchange.timeout_s = 10
        results = together(lambda exchange: exchange.swap(1, 20, 0, frame(exchange.shard)))
    # Then it has its partials
    assert values(results[0][1]) == [1]
    # And partials that no peer took expire
    left = list(client.scan_iter("skynet:x:*"))
    assert len(left) == 3
    assert all(0 < client.ttl(key) <= 80 for key in left)  # type: ignore[operator]


def test_a_broken_connection_is_a_lost_peer_and_then_opened_again(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given shards that have exchanged
    with shards(server, 2) as (_, together):
        together(lambda exchange: exchange.swap(1, 30, 0, frame(1)))
        # When Redis drops all connections
        client.client_kill_filter(_type="normal", skipme=True)

        def run(exchange: Exchange) -> str:
            try:
                exchange.swap(1, 31, 0, frame(1))
            except PeerLost as error:
                return str(error)
            return ""

        broken = together(run)
        # Then the step fails, and the next one works
        assert all("the exchange broke" in message for message in broken)
        results = together(lambda exchange: exchange.swap(1, 32, 0, frame(exchange.shard)))
        assert values(results[1][0]) == [0]
