"""The exchange: every shard gets every partial of its step and place, or an error."""

from __future__ import annotations

import itertools
import socket
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
from skynet.exchange import fast_sum, sums
from skynet.exchange.exchange import Exchange
from skynet.exchange.group import Group
from skynet.exchange.link import Link
from skynet.local.server import EmbeddedServer
from skynet.wire import keys
from skynet.wire.exchange_message import header_of, tag_of
from skynet.wire.frame import BFLOAT16, FLOAT32, Frame
from skynet.worker.all_reduce import AllReduce

WAIT_S = 30


@pytest.fixture(params=["redis", "direct", "both"])
def carrier(request: pytest.FixtureRequest) -> str:
    """How partials travel; both: shards 0 and 1 have a link, the other pairs have none."""
    return str(request.param)


@contextmanager
def shards(
    server: EmbeddedServer, count: int, timeout_s: float = 10, carrier: str = "redis"
) -> Iterator[tuple[list[Exchange], Callable[..., list[Any]]]]:
    """A stage's exchanges, and a function that runs one call in each, side by side."""
    with ExitStack() as stack:
        exchanges = [
            stack.enter_context(closing(Exchange(Group(1, 0, shard, count), server.url)))
            for shard in range(count)
        ]
        links: list[dict[int, Link]] = [{} for _ in range(count)]
        for low, high in itertools.combinations(range(count), 2):
            if carrier == "direct" or (carrier == "both" and high == 1):
                ends = socket.socketpair()
                links[low][high], links[high][low] = Link(ends[0], "unix"), Link(ends[1], "unix")
        for exchange in exchanges:
            exchange.timeout_s = timeout_s
            exchange.open(links[exchange.shard])
        pool = stack.enter_context(ThreadPoolExecutor(count))

        def together(call: Callable[[Exchange], Any]) -> list[Any]:
            futures = [pool.submit(call, exchange) for exchange in exchanges]
            return [future.result(WAIT_S) for future in futures]

        yield exchanges, together


def frame(*values: float) -> Frame:
    return Frame.of(np.array([values], np.float32))


def values(partial: Frame) -> list[float]:
    return [float(value) for value in partial.array()[0]]


@pytest.mark.parametrize("count", [2, 3])
def test_every_shard_gets_all_partials_of_every_sum(
    server: EmbeddedServer, count: int, carrier: str
) -> None:
    # Given shards that make many sums one after the other, without waiting for each other
    def run(exchange: Exchange) -> list[list[list[float]]]:
        sums = []
        for position in range(20):
            mine = frame(exchange.shard, position)
            got = exchange.swap(1, 7, position, mine)
            sums.append([values(got[shard]) for shard in sorted(got)])
        return sums

    with shards(server, count, carrier=carrier) as (_, together):
        # When they exchange
        results = together(run)
    # Then each has each shard's partial of the same sum
    expected = [[[shard, position] for shard in range(count)] for position in range(20)]
    assert results == [expected] * count


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_sum_has_the_same_bits_on_every_shard(
    server: EmbeddedServer, count: int, dtype: str, carrier: str
) -> None:
    # Given partials whose sum depends on the order
    partials = [torch.randn(5, 48, generator=torch.manual_seed(s)) * 10**s for s in range(count)]

    def run(exchange: Exchange) -> list[torch.Tensor]:
        all_reduce = AllReduce(exchange, 1, 9, 0, dtype)
        return [all_reduce(partials[exchange.shard]) for _ in range(3)]

    with shards(server, count, carrier=carrier) as (_, together):
        # When each shard sums, three times
        results = together(run)
    # Then all have the same bits, those of a sum in shard order
    rounded = dtype == "bfloat16" and count > 1
    expected = torch.zeros(5, 48)
    for partial in partials:
        expected = expected + (partial.bfloat16().float() if rounded else partial)
    for totals in results:
        for total in totals:
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


def test_a_peer_that_is_silent_is_lost_and_named(server: EmbeddedServer, carrier: str) -> None:
    # Given a peer that never sends
    with shards(server, 3, timeout_s=0.1, carrier=carrier) as (exchanges, _):
        # When a shard waits for it
        with pytest.raises(PeerLost) as raised:
            exchanges[0].swap(1, 11, 4, frame(1))
    # Then the error names the waiting shard, the all-reduce and the lost peer
    assert "stage0.shard0, sum 4: no partial from stage0.shard1" in str(raised.value)


def test_a_wait_ends_when_the_step_is_given_up(server: EmbeddedServer, carrier: str) -> None:
    # Given a step that was given up
    with shards(server, 2, timeout_s=25, carrier=carrier) as (exchanges, _):
        asked = threading.Event()
        exchanges[0].still_wanted = asked.is_set
        # When a shard waits / Then it does not wait until its timeout
        with pytest.raises(PeerLost, match="given up"):
            exchanges[0].swap(1, 12, 0, frame(1))
        assert exchanges[0].waited_s < 20


def test_a_peer_that_fails_says_why_at_once(server: EmbeddedServer, carrier: str) -> None:
    # Given a shard that fails before a sum its peer waits for
    with shards(server, 2, carrier=carrier) as (exchanges, together):

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


def test_a_peer_that_finds_nan_passes_its_own_words_on(
    server: EmbeddedServer, carrier: str
) -> None:
    # Given a shard that finds NaN before a sum its peer waits for
    with shards(server, 2, carrier=carrier) as (exchanges, together):

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
def test_a_partial_of_another_shape_is_an_error(
    server: EmbeddedServer, other: Frame, carrier: str
) -> None:
    # Given a peer with another idea of the step's shape
    def run(exchange: Exchange) -> str:
        mine = other if exchange.shard == 1 else frame(1, 2)
        try:
            exchange.swap(1, id(other), 0, mine)
        except WireError as error:
            return str(error)
        return ""

    with shards(server, 2, carrier=carrier) as (_, together):
        # When they exchange
        errors = together(run)
    # Then the error says what was expected and what came
    assert "stage0.shard1 sent" in errors[0]
    assert "1x2 float32" in errors[0]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "int8"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_large_sums_have_the_same_bits(
    server: EmbeddedServer, count: int, dtype: str, carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given partials of several pieces, which are not cut evenly, and of one number
    monkeypatch.setattr(sums, "PIECE_FLOATS", 4096)
    monkeypatch.setattr(sums, "SCATTER_FLOATS", 1000)
    monkeypatch.setattr(fast_sum, "MAX_FLOATS", 999)
    shapes = [(53, 181), (1, 1), (1, 1000)]
    partials = [
        [torch.randn(shape, generator=torch.manual_seed(s)) * 10**s for shape in shapes]
        for s in range(count)
    ]

    def run(exchange: Exchange) -> list[torch.Tensor]:
        all_reduce = AllReduce(exchange, 1, 9, 0, dtype)
        return [all_reduce(partial) for partial in partials[exchange.shard]]

    with shards(server, count, carrier=carrier) as (_, together):
        # When all are summed
        results = together(run)
    # Then every shard has the bits of the sums in shard order
    for at, shape in enumerate(shapes):
        expected = torch.zeros(shape)
        for shard in range(count):
            expected = expected + rounded(partials[shard][at], dtype)
        assert all(torch.equal(result[at], expected) for result in results)


def rounded(partial: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype == "int8":
        return torch.from_numpy(Frame.of_int8(partial.numpy()).floats())
    return partial.bfloat16().float() if dtype == "bfloat16" else partial


def test_reduce_scatter_sends_less(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given four linked shards, whose messages are counted
    sent: list[int] = []
    send = Link.send

    def counted(link: Link, *parts: bytes | memoryview) -> None:
        sent.append(sum(map(len, parts)))
        send(link, *parts)

    monkeypatch.setattr(Link, "send", counted)
    partial = torch.zeros(32, 4096)
    # When they sum a large partial
    with shards(server, 4, carrier="direct") as (_, together):
        together(lambda exchange: AllReduce(exchange, 1, 9, 0)(partial))
    # Then each sends 2 (n - 1) / n of it, and headers
    assert sum(sent) / 4 == pytest.approx(2 * 3 / 4 * 4 * partial.numel(), rel=0.01)


def publish(client: redis.Redis, tag: bytes, payload: bytes) -> None:
    """As a message of shard 1, to all its peers."""
    message = header_of(tag, len(payload)) + payload
    assert client.publish(keys.exchange_channel(1, 0, 1).decode(), message) == 1


@pytest.mark.parametrize(
    "payload",
    [b"?", b"?" * len(frame(1).encode()), frame(1, 2).encode()],
    ids=["short", "no frame", "another shape"],
)
def test_a_forged_partial_is_refused(
    server: EmbeddedServer, client: redis.Redis, payload: bytes
) -> None:
    with shards(server, 2) as (exchanges, _):
        # Given a message of the right sum, that is not a partial of its shape
        publish(client, tag_of(1, 15, 0), payload)
        # When it is received / Then the step fails
        with pytest.raises(WireError, match=r"stage0\.shard1 sent"):
            exchanges[0].swap(1, 15, 0, frame(1))


def test_nonsense_in_a_channel_is_dropped(server: EmbeddedServer, client: redis.Redis) -> None:
    with shards(server, 2) as (_, together):
        # Given messages of other clients
        for nonsense in (b"", b"?", b"{}" * 500):
            client.publish(keys.exchange_channel(1, 0, 1).decode(), nonsense)
        # When a sum is made / Then it has its partials
        results = together(lambda exchange: exchange.swap(1, 16, 0, frame(exchange.shard)))
    assert values(results[0][1]) == [1]


def test_a_late_message_is_never_taken_for_another_step(
    server: EmbeddedServer, client: redis.Redis, carrier: str
) -> None:
    # Given what a peer sent for other steps, places and epochs, larger ones too
    with shards(server, 2, timeout_s=0.1, carrier=carrier) as (exchanges, together):
        for size, sum_ in enumerate(((1, 19, 0), (1, 20, 1), (2, 20, 0), (1, 18, 3))):
            with pytest.raises(PeerLost):
                exchanges[1].swap(*sum_, frame(*[666] * 10**size))
        # When a step is exchanged
        for exchange in exchanges:
            exchange.timeout_s = 10
        results = together(lambda exchange: exchange.swap(1, 20, 0, frame(exchange.shard)))
        # Then it has its partials
        assert values(results[0][1]) == [1]
    # And nothing is left in Redis
    assert not list(client.scan_iter("skynet:x:*"))


def test_partials_larger_than_a_socket_takes_at_once(server: EmbeddedServer, carrier: str) -> None:
    # Given partials of 4 MB
    large = np.arange(2**20, dtype=np.float32).reshape(64, -1)
    # When three shards exchange them, and a small one afterwards
    with shards(server, 3, carrier=carrier) as (_, together):

        def run(exchange: Exchange) -> list[bool]:
            got = exchange.swap(1, 1, 0, Frame.of(large * (exchange.shard + 1)))
            same = [np.array_equal(got[peer].array(), large * (peer + 1)) for peer in range(3)]
            after = exchange.swap(1, 1, 1, frame(exchange.shard))
            return [*same, *(values(after[peer]) == [peer] for peer in range(3))]

        # Then they arrive whole
        assert together(run) == [[True] * 6] * 3


def lost(exchange: Exchange, step: int) -> str:
    try:
        exchange.swap(1, step, 0, frame(1))
    except PeerLost as error:
        return str(error)
    return ""


def test_a_broken_subscription_is_a_lost_peer(server: EmbeddedServer, client: redis.Redis) -> None:
    # Given shards that have exchanged
    with shards(server, 2, timeout_s=25) as (exchanges, together):
        together(lambda exchange: exchange.swap(1, 30, 0, frame(1)))
        # When Redis drops their subscriptions
        client.client_kill_filter(_type="pubsub", skipme=True)
        # Then the step fails at once, and the others of this epoch too
        for step in (31, 32):
            broken = together(lambda exchange, step=step: lost(exchange, step))
            assert all("the exchange broke" in message for message in broken)
        assert max(exchange.waited_s for exchange in exchanges) < 20


def test_a_peer_without_a_subscription_is_lost_at_once(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given a peer that has ended
    with shards(server, 2, timeout_s=25) as (exchanges, _):
        exchanges[1].close()
        # When a shard sends it a partial / Then it is lost
        assert "a peer's subscription is closed" in lost(exchanges[0], 31)
        assert exchanges[0].waited_s < 20


def test_a_broken_link_is_a_lost_peer(server: EmbeddedServer) -> None:
    # Given linked shards that have exchanged
    with shards(server, 2, timeout_s=25, carrier="direct") as (exchanges, together):
        together(lambda exchange: exchange.swap(1, 30, 0, frame(1)))
        # When one ends its end
        exchanges[1].close()
        # Then the other one knows at once, then and later
        for step in (31, 32):
            assert "the link to stage0.shard1 broke" in lost(exchanges[0], step)
        assert exchanges[0].waited_s < 20


def test_a_link_in_the_middle_of_a_message_breaks_with_the_step(server: EmbeddedServer) -> None:
    # Given a shard that gives a step up while its peer, half open, takes none of its bytes
    large = Frame.of(np.zeros((4096, 1024), np.float32))
    with shards(server, 2, timeout_s=0.1, carrier="direct") as (exchanges, _):
        with pytest.raises(PeerLost, match=r"no partial from stage0\.shard1"):
            exchanges[0].swap(1, 40, 0, large)
        exchanges[0].abort(1, 40, 0, PeerLost("given up"))
        # When the peer comes to the sum / Then it does not wait for the rest
        exchanges[1].timeout_s = 25
        with pytest.raises(PeerLost, match=r"the link to stage0\.shard0 broke"):
            exchanges[1].swap(1, 40, 0, large)
        assert exchanges[1].waited_s < 20
