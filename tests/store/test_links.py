"""How pairs of shards settle on a direct link or on Redis, and what a broken link does."""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from skynet.errors import ConfigurationError, PeerLost
from skynet.exchange.exchange import Exchange
from skynet.exchange.group import Group
from skynet.exchange.listener import (
    Listener,
    delete_stale_sockets,
    machine_id,
    socket_directory,
    socket_path,
)
from skynet.exchange.settling import Settling
from skynet.local.server import EmbeddedServer
from skynet.orchestrator.membership import candidate_of
from skynet.settings import settings
from skynet.store.members import Member, Members
from skynet.wire.frame import Frame
from skynet.worker.plan_follower import least_trips
from tests.chaos.link_relays import relay_unix
from tests.cluster.processes import wait_for
from tests.cluster.proxy import Direction, Proxy

NAMES = ("m0", "m1", "m2")
SECRET, OTHER_SECRET = "ab" * 32, "cd" * 32
WAIT_S = 30


@dataclass
class Worker:
    """What a shard worker has to do with links."""

    exchange: Exchange
    settling: Settling
    member: Member
    listener: Listener | None
    members: Members

    def tick(self) -> bool:
        """One turn of the plan follower; whether the exchange is open."""
        is_open = self.settling.advance(self.members.of(self.exchange.group.members))
        if self.settling.decided:
            self.member.links = self.settling.states()
        self.members.renew(self.member)
        return is_open

    def send(self, step: int, value: float) -> list[float]:
        """The numbers of all shards."""
        frames = self.exchange.swap(7, step, 0, Frame.of(np.array([[value]], np.float32)))
        return [float(frames[shard].array()[0, 0]) for shard in sorted(frames)]


Make = Callable[..., Worker]


@pytest.fixture
def make(
    server: EmbeddedServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Makes the worker of a shard; its sockets are in a directory of the test."""
    directory = tempfile.mkdtemp(prefix="sn-")  # pytest's paths are too long for sockets
    monkeypatch.setattr(tempfile, "tempdir", directory)
    made: list[Worker] = []

    def make_worker(
        shard: int,
        *,
        count: int = 2,
        links: bool = True,
        tcp: str = "",
        secret: str = SECRET,
        **fields: Any,
    ) -> Worker:
        group = Group(7, 0, shard, count, "plan", secret, NAMES[:count])
        exchange = Exchange(group, server.url)
        exchange.timeout_s = 10
        listener = Listener(NAMES[shard], tcp) if links else None
        member = Member(NAMES[shard], "n", group.name(), "here", 7, "loading", epoch=7)
        member.machine = machine_id()
        if listener is not None:
            member.unix_socket, member.tcp_address = listener.unix, listener.tcp
        member = replace(member, **fields)
        made.append(
            Worker(exchange, Settling(exchange, listener), member, listener, Members(client, 60))
        )
        return made[-1]

    yield make_worker
    for worker in made:
        worker.exchange.close()
        if worker.listener is not None:
            worker.listener.close()
    shutil.rmtree(directory)


def settle(*workers: Worker) -> None:
    """Until all are open."""
    wait_for("the exchanges to open", lambda: _tick(workers))


def _tick(workers: tuple[Worker, ...]) -> bool:
    opened = [worker.tick() for worker in workers]
    return all(opened)


def kinds(*workers: Worker) -> list[list[str]]:
    return [[worker.settling.kinds[peer] for peer in worker.exchange.peers] for worker in workers]


def exchanged(*workers: Worker, step: int = 1) -> list[Any]:
    """What each shard gets, or why it gets nothing."""
    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(worker.send, step, n) for n, worker in enumerate(workers)]
        return [error_or_result(future) for future in futures]


def error_or_result(future: Any) -> Any:
    error = future.exception(WAIT_S)
    return error if error is not None else future.result()


def test_workers_of_one_machine_exchange_by_unix_sockets(make: Make) -> None:
    # Given three workers of one machine
    workers = [make(shard, count=3) for shard in range(3)]
    # When they settle
    settle(*workers)
    # Then every pair has a link, measured by the shard that made it
    assert kinds(*workers) == [["unix", "unix"]] * 3
    assert [[s.peer for s in w.member.links] for w in workers] == [
        [],
        ["stage0.shard0"],
        ["stage0.shard0", "stage0.shard1"],
    ]
    assert all(0 < state.round_trip_s < 1 for w in workers for state in w.member.links)
    # And partials take it
    assert exchanged(*workers) == [[0, 1, 2]] * 3
    assert not workers[0].exchange.redis.peers
    # And the sockets are this user's alone
    assert stat.S_IMODE(os.stat(socket_directory()).st_mode) == 0o700


def test_the_dialer_knows_the_round_trip_to_the_other_host(make: Make) -> None:
    # Given workers of two hosts
    there = make(0, tcp="127.0.0.1:0", host="there", unix_socket=False)
    here = make(1, tcp="127.0.0.1:0")
    # When they have a link
    settle(there, here)
    members = here.members.of(NAMES[:2])
    trips = here.settling.trips(members)
    # Then the one that dialled has measured it
    assert trips.keys() == {"there"}
    assert 0 < trips["there"] < 1
    assert there.settling.trips(members) == {}
    # And its record keeps the least of all measurements, for the planner
    here.member.trips = least_trips(here.member, trips)
    here.member.trips = least_trips(here.member, {"there": 2.0, here.member.host: 1e-6})
    here.members.renew(here.member)
    record = here.members.of([NAMES[1]])[NAMES[1]]
    assert candidate_of(record, 0).trips == trips


def test_a_worker_that_is_still_loading_is_waited_for(make: Make) -> None:
    # Given a worker that has not taken its place yet
    first = make(0)
    assert first.listener is not None
    first.listener._group = None
    first.members.renew(first.member)
    # When its peer dials, often
    second = make(1)
    for _ in range(5):
        assert not second.tick()
    # Then it settles for nothing else, and the link comes with the place
    assert not second.settling.kinds
    first.listener.expect(first.exchange.group)
    settle(first, second)
    assert kinds(first, second) == [["unix"], ["unix"]]


@pytest.mark.parametrize(
    "fields",
    [{"machine": "another"}, {"unix_socket": False}, {"id": "m0", "unix_socket": True}],
    ids=["another machine", "no socket", "same machine, no such socket"],
)
def test_workers_that_cannot_reach_each_other_exchange_through_redis(
    make: Make, caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    # Given workers without a way to each other, though one says it has: it is in another container
    first, second = make(0, **fields), make(1)
    if "id" in fields:
        (socket_directory() / "m0.sock").unlink()
    # When they settle
    with caplog.at_level(logging.INFO):
        settle(first, second)
    # Then both exchange through Redis, and one line says why
    assert kinds(first, second) == [["redis"], ["redis"]]
    assert exchanged(first, second) == [[0, 1]] * 2
    lines = [r.getMessage() for r in caplog.records if "through Redis" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("stage0.shard1 exchanges with stage0.shard0 through Redis")
    # And the record has the round trip
    assert second.member.links[0].round_trip_s > 0


@pytest.mark.parametrize("shard", [0, 1])
def test_a_worker_without_links_is_respected(make: Make, shard: int) -> None:
    # Given workers of which one has SKYNET_EXCHANGE=redis
    workers = [make(number, links=number != shard) for number in range(2)]
    # When they settle / Then both use Redis
    settle(*workers)
    assert kinds(*workers) == [["redis"], ["redis"]]
    assert exchanged(*workers) == [[0, 1]] * 2


@pytest.mark.parametrize("secret", [OTHER_SECRET, ""])
def test_a_link_needs_the_secret_of_the_plan(
    make: Make, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    # Given a worker that does not know the plan's secret
    first, second = make(0), make(1, secret=secret)
    # When they settle / Then there is no link
    with caplog.at_level(logging.INFO):
        settle(first, second)
    assert kinds(first, second) == [["redis"], ["redis"]]
    assert ("does not know the secret of plan 7" in caplog.text) == bool(secret)


def test_workers_of_two_machines_exchange_by_tcp(make: Make) -> None:
    # Given workers of two machines that listen
    first = make(0, machine="another", tcp="127.0.0.1:0")
    second = make(1, tcp="127.0.0.1:0")
    # When they settle / Then they have a link
    settle(first, second)
    assert kinds(first, second) == [["tcp"], ["tcp"]]
    assert exchanged(first, second) == [[0, 1]] * 2


@pytest.mark.parametrize(("mode", "kind"), [("auto", "redis"), ("direct", "tcp")])
def test_beside_tls_tcp_links_are_by_wish_only(
    make: Make, monkeypatch: pytest.MonkeyPatch, mode: str, kind: str
) -> None:
    # Given workers of two machines whose Redis speaks TLS: links would not be encrypted
    monkeypatch.setenv("SKYNET_REDIS_URL", "rediss://localhost:1/0")
    monkeypatch.setenv("SKYNET_EXCHANGE", mode)
    settings.cache_clear()
    first, second = make(0, machine="another", tcp="127.0.0.1:0"), make(1)
    # When they settle / Then
    settle(first, second)
    assert kinds(first, second) == [[kind], [kind]]


def test_a_link_that_only_one_end_believes_in_is_a_lost_peer(make: Make) -> None:
    # Given a link whose listener has lost it before it followed its peer's decision
    first, second = make(0), make(1)
    first.members.renew(first.member)
    wait_for("the link", lambda: second.tick() or "unix" in second.settling.kinds.values())
    assert first.listener is not None
    lost = first.listener.take(first.exchange.group, 1)
    assert lost is not None
    lost.close()
    # When both go on
    settle(first, second)
    # Then the first sum fails at both ends, at once
    errors = exchanged(first, second)
    assert all(isinstance(error, PeerLost) for error in errors)
    assert max(first.exchange.waited_s, second.exchange.waited_s) < 5
    # And under the next epoch they settle anew
    assert first.listener is not None
    group = replace(first.exchange.group, epoch=8)
    first.listener.expect(group)
    assert first.listener.take(group, 1) is None


@pytest.fixture(params=["tcp", "unix"])
def proxied(make: Make, request: pytest.FixtureRequest) -> Iterator[tuple[Proxy, Worker, Worker]]:
    """Workers whose link goes through a faulty network, or through a faulty relay."""
    if request.param == "unix":
        first = make(0)
        relay = relay_unix(socket_path(NAMES[0]), random.Random(1))
        second = make(1)
        settle(first, second)
        assert kinds(first, second) == [["unix"], ["unix"]]
        assert relay.num_connections() == 1
        yield relay, first, second
        relay.stop()
        return
    first = make(0, machine="another", tcp="127.0.0.1:0")
    with Proxy(f"redis://{first.member.tcp_address}", random.Random(1)) as proxy:
        first.member.tcp_address = f"127.0.0.1:{proxy.port}"
        second = make(1)
        settle(first, second)
        assert kinds(first, second) == [["tcp"], ["tcp"]]
        yield proxy, first, second


def test_a_cut_link_is_a_lost_peer(proxied: tuple[Proxy, Worker, Worker]) -> None:
    # Given a link that is cut
    proxy, *workers = proxied
    assert exchanged(*workers) == [[0, 1]] * 2
    proxy.cut()
    # When a sum is made / Then both ends know at once
    errors = exchanged(*workers, step=2)
    assert ["the link to stage0.shard" in str(error) for error in errors] == [True, True]
    assert all(isinstance(error, PeerLost) for error in errors)


@pytest.mark.parametrize("direction", list(Direction))
def test_a_link_that_is_cut_in_a_message_is_a_lost_peer(
    proxied: tuple[Proxy, Worker, Worker], direction: Direction
) -> None:
    # Given a link that breaks after some bytes of a message
    proxy, *workers = proxied
    assert exchanged(*workers) == [[0, 1]] * 2
    proxy.cut_in_message(direction)
    # When a sum is made / Then at least the receiver of that message has none, and none is wrong
    results = exchanged(*workers, step=2)
    assert all(isinstance(each, PeerLost) or each == [0, 1] for each in results)
    assert isinstance(results[0 if direction is Direction.UP else 1], PeerLost)
    # And so has each of the next, at both ends
    assert all(isinstance(each, PeerLost) for each in exchanged(*workers, step=3))


def test_a_link_on_which_nothing_arrives_is_a_lost_peer_after_the_timeout(
    proxied: tuple[Proxy, Worker, Worker],
) -> None:
    # Given a link that is half open: its packets arrive nowhere
    proxy, *workers = proxied
    proxy.hold()
    for worker in workers:
        worker.exchange.timeout_s = 0.1
    # When a sum is made / Then it ends
    errors = exchanged(*workers)
    assert all("no partial from stage0.shard" in str(error) for error in errors)
    # And what arrives later is not taken for another sum's
    proxy.release()
    for worker in workers:
        worker.exchange.timeout_s = 10
    assert exchanged(*workers, step=2) == [[0, 1]] * 2


def test_a_slow_link_delivers(proxied: tuple[Proxy, Worker, Worker]) -> None:
    proxy, *workers = proxied
    proxy.delay(0.02)
    assert [exchanged(*workers, step=step) for step in range(3)] == [[[0, 1]] * 2] * 3


def test_a_directory_that_others_can_enter_is_not_used(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a directory that another user may have made
    socket_directory().chmod(0o755)
    # When a worker starts / Then it accepts no links there, and says so
    worker = make(0)
    assert worker.listener is not None
    assert not worker.listener.unix
    assert "can use" in caplog.text
    assert not list((Path(tempfile.gettempdir()) / f"skynet-{os.geteuid()}").iterdir())


def test_sockets_of_killed_workers_are_deleted(make: Make) -> None:
    # Given a socket that nobody listens on since long, a new one, and one in use
    worker = make(0)
    assert worker.listener is not None
    killed, starting = (socket_directory() / name for name in ("old.sock", "new.sock"))
    for path in (killed, starting):
        _dead_socket(path)
    for path in (killed, socket_directory() / "m0.sock"):
        os.utime(path, (1, 1))
    # When another worker starts
    delete_stale_sockets(socket_directory())
    # Then the first is gone
    assert {path.name for path in socket_directory().iterdir()} == {"m0.sock", "new.sock"}


def _dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))


def test_an_address_that_is_taken_is_refused(make: Make) -> None:
    # Given a worker that listens
    first = make(0, tcp="127.0.0.1:0")
    # When another one is told the same address / Then the error names setting and remedy
    with pytest.raises(ConfigurationError, match=r"SKYNET_EXCHANGE_LISTEN=127\.0\.0\.1:.*port 0"):
        Listener("m9", first.member.tcp_address)
