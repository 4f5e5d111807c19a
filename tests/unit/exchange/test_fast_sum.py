"""Sums in C over links: same bits as in Python, and whatever does not go well is left to Python."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import torch

from skynet.errors import NotFinite, PeerLost
from skynet.exchange import fast_sum
from skynet.exchange.exchange import Exchange
from skynet.exchange.fast_sum import MAX_FLOATS, FastSum
from skynet.exchange.group import Group
from skynet.exchange.link import Link
from skynet.exchange.sums import SCATTER_FLOATS
from skynet.wire.exchange_message import header_of, tag_of
from skynet.wire.frame import Frame
from skynet.worker.all_reduce import AllReduce

WAIT_S = 30


@pytest.fixture(autouse=True)
def needs_kernels() -> None:
    if fast_sum._function() is None:
        pytest.skip("no kernels are built for this machine")


@pytest.fixture(params=[2, 3, 4])
def exchanges(request: pytest.FixtureRequest) -> Iterator[list[Exchange]]:
    """Linked shards, none of which needs Redis."""
    count = request.param
    links: list[dict[int, Link]] = [{} for _ in range(count)]
    for low, high in itertools.combinations(range(count), 2):
        ends = socket.socketpair()
        links[low][high], links[high][low] = Link(ends[0], "unix"), Link(ends[1], "unix")
    made = [Exchange(Group(1, 0, shard, count), "unix:///nowhere") for shard in range(count)]
    for exchange in made:
        exchange.open(links[exchange.shard])
        exchange.timeout_s = 10
    yield made
    for exchange in made:
        exchange.close()


def together(exchanges: list[Exchange], call: Any) -> list[Any]:
    with ThreadPoolExecutor(len(exchanges)) as pool:
        futures = [pool.submit(call, exchange) for exchange in exchanges]
    return [future.exception(WAIT_S) or future.result() for future in futures]


def partials(count: int, *shape: int) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=torch.manual_seed(s)) * 10**s for s in range(count)]


def in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@pytest.mark.parametrize("spins", [True, False])
def test_sums_have_the_bits_of_sums_in_shard_order(exchanges: list[Exchange], spins: bool) -> None:
    # Given many sums of several shapes, the last too large for one call, waited for or not
    shapes = [(1, 576), (3, 7), (1, 1), (4, 576)] * 10 + [(1, MAX_FLOATS + 1), (1, 5)]
    parts = [partials(len(exchanges), *shape) for shape in shapes]

    def run(exchange: Exchange) -> list[torch.Tensor]:
        exchange.spins = spins
        all_reduce = AllReduce(exchange, 1, 2, 0)
        return [all_reduce(each[exchange.shard]) for each in parts]

    # When all shards make them / Then
    for sums in together(exchanges, run):
        assert all(torch.equal(a, in_order(b)) for a, b in zip(sums, parts, strict=True))


def test_late_messages_and_failures_are_left_to_python(exchanges: list[Exchange]) -> None:
    # Given shards of which the last fails in a sum, and has sent to one that was given up
    parts = partials(len(exchanges), 1, 64)

    def fail(exchange: Exchange) -> torch.Tensor:
        if exchange.shard == len(exchanges) - 1:
            late = Frame.of(torch.zeros(5, 64).numpy())
            for link in exchange.links.values():
                link.send(header_of(tag_of(1, 1, 0), len(late.encode())), late.encode())
            exchange.abort(1, 2, 0, NotFinite("3 NaN", (0,)))
            raise PeerLost("this one")
        return AllReduce(exchange, 1, 2, 0)(parts[exchange.shard])

    # When the others wait for it / Then they fail likewise
    *others, _ = together(exchanges, fail)
    assert [str(error) for error in others] == ["3 NaN"] * (len(exchanges) - 1)
    assert all(isinstance(error, NotFinite) for error in others)
    # And the next step is right
    sums = together(exchanges, lambda e: AllReduce(e, 1, 3, 0)(parts[e.shard]))
    assert all(torch.equal(total, in_order(parts)) for total in sums)


def test_a_message_in_pieces_is_received_by_python() -> None:
    # Given a peer whose message comes in two halves
    ends = socket.socketpair()
    exchange = Exchange(Group(1, 0, 0, 2), "unix:///nowhere")
    exchange.open({1: Link(ends[0], "unix")})
    part = torch.arange(8, dtype=torch.float32)[None]
    payload = Frame.of(part.numpy()).encode()
    message = header_of(tag_of(1, 2, 0), len(payload)) + payload
    ends[1].sendall(message[:50])
    with closing(exchange), closing(ends[1]), ThreadPoolExecutor(1) as pool:
        # When it is summed
        summed = pool.submit(lambda: AllReduce(exchange, 1, 2, 0)(part))
        assert ends[1].recv(1000) == message
        ends[1].sendall(message[50:])
        # Then it is whole
        assert torch.equal(summed.result(WAIT_S), part * 2)


def test_a_closed_link_is_a_lost_peer(exchanges: list[Exchange]) -> None:
    exchanges[1].close()
    with pytest.raises(PeerLost, match=r"the link to stage0\.shard1 broke"):
        AllReduce(exchanges[0], 1, 2, 0)(torch.zeros(1, 8))


def test_without_all_links_python_sums(exchanges: list[Exchange]) -> None:
    links = dict(exchanges[0].links)
    assert FastSum.over(links, 0, len(exchanges)) is not None
    assert FastSum.over(links, 0, len(exchanges) + 1) is None
    assert FastSum.over({}, 0, 1) is None


def test_no_sum_is_quick_on_one_shard_and_cut_on_another() -> None:
    assert MAX_FLOATS < SCATTER_FLOATS
