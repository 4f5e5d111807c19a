"""The faulty network of the tests: delays, holds and cuts connections, and changes nothing else."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from skynet.local.server import EmbeddedServer
from tests.cluster.processes import wait_for
from tests.cluster.proxy import Direction, Proxy


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    with Proxy(server.url, random.Random(7)) as running:
        yield running


@pytest.fixture
def through(proxy: Proxy, client: redis.Redis) -> Iterator[redis.Redis]:
    """A client that goes through the proxy; `client` goes past it."""
    proxied_client = redis.Redis(
        port=proxy.port,
        socket_timeout=30,
        retry=Retry(NoBackoff(), 0),
        single_connection_client=True,
    )
    yield proxied_client
    proxied_client.close()


def test_it_forwards_small_and_big_messages(through: redis.Redis, client: redis.Redis) -> None:
    # Given a value of many chunks
    value = random.Random(1).randbytes(3_000_000)
    # When it goes up and comes down / Then it is the same
    through.set("big", value)
    assert client.get("big") == value
    assert through.get("big") == value


def test_held_data_arrives_after_the_release(
    proxy: Proxy, through: redis.Redis, client: redis.Redis
) -> None:
    # Given a connection through which nothing goes
    through.ping()
    proxy.hold()
    # When something is written
    writer = threading.Thread(target=through.set, args=("late", 1), daemon=True)
    writer.start()
    connections = proxy.num_connections()
    # Then the connection stays open and the server hears nothing
    assert connections == 1
    assert client.get("late") is None
    # And it arrives when the way is free again
    proxy.release()
    writer.join(10)
    assert not writer.is_alive()
    assert client.get("late") == b"1"


def test_one_direction_can_be_held(proxy: Proxy, through: redis.Redis, client: redis.Redis) -> None:
    # Given a connection whose replies are held
    through.ping()
    proxy.hold(Direction.DOWN)
    # When something is written
    writer = threading.Thread(target=through.set, args=("up", 1), daemon=True)
    writer.start()
    # Then the server gets it, and the client its reply only later
    wait_for("the write to arrive", lambda: client.get("up") == b"1")
    assert writer.is_alive()
    proxy.release()
    writer.join(10)
    assert not writer.is_alive()


def test_a_new_connection_is_accepted_while_nothing_goes_through(proxy: Proxy) -> None:
    # Given a proxy that forwards nothing
    proxy.hold()
    # When a client connects / Then the connection opens and stays silent until release
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as plug:
        plug.sendall(b"PING\r\n")
        plug.setblocking(False)
        with pytest.raises(BlockingIOError):
            plug.recv(1)
        proxy.release()
        plug.settimeout(10)
        assert plug.recv(100) == b"+PONG\r\n"


def test_delayed_chunks_still_arrive(proxy: Proxy, through: redis.Redis) -> None:
    # Given a slow way up
    proxy.delay(0.05, Direction.UP)
    # When something is asked / Then it is answered, and the delay ends with 0
    assert through.ping()
    proxy.delay(0)
    assert through.ping()


def test_all_connections_can_be_cut(proxy: Proxy, through: redis.Redis) -> None:
    # Given a connection
    through.ping()
    # When all are cut
    assert proxy.cut() == 1
    # Then it is told, and can come back
    with pytest.raises(redis.ConnectionError):
        through.ping()
    assert through.ping()


@pytest.mark.parametrize("direction", list(Direction))
def test_a_message_is_cut_in_its_middle(
    proxy: Proxy, through: redis.Redis, client: redis.Redis, direction: Direction
) -> None:
    # Given a connection whose next chunk that way is cut
    through.ping()
    proxy.cut_in_message(direction)
    # When something is written
    with pytest.raises(redis.ConnectionError):
        through.set("half", b"v" * 1000)
    # Then a half message changed nothing, a lost reply hides a change that was made
    assert client.get("half") == (None if direction is Direction.UP else b"v" * 1000)
    assert proxy.num_cut_in_message == 1
    # And the next connection is whole
    assert through.ping()


def test_a_client_that_dies_is_gone_at_the_server_too(
    proxy: Proxy, through: redis.Redis, client: redis.Redis
) -> None:
    # Given a connection through the proxy
    number = through.client_id()
    # When the client closes it
    through.close()
    # Then the server sees it close
    wait_for("the end", lambda: not client.client_list(client_id=[str(number)]))
    assert proxy.num_connections() == 0


def test_a_server_that_is_down_ends_connections() -> None:
    # Given a proxy to a server that is down, by TCP and by a Unix socket
    for target in ("unix:///nowhere/redis.sock", "redis://127.0.0.1:1/0"):
        with Proxy(target) as proxy:
            with redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0)) as lost:
                # When a client sends a command / Then the connection ends
                with pytest.raises(redis.ConnectionError):
                    lost.ping()
    # And nothing listens any more
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
