"""The relay of `skynet bench plan`: it delays bytes, changes none and ends with its owner."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from skynet.bench.delay import Delay
from skynet.local.cluster import free_port
from skynet.local.server import local_server


@pytest.fixture
def port() -> Iterator[int]:
    """Of an embedded server."""
    port = free_port()
    with local_server(port):
        yield port


def connected(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=20)


def test_bytes_arrive_unchanged_and_later(port: int) -> None:
    # Given a relay, and a value of many chunks
    value = random.Random(1).randbytes(3_000_000)
    with Delay(port) as delay, connected(delay.url) as client:
        client.set("big", value)
        assert client.get("big") == value
        # When it delays / Then a round trip takes both delays
        delay.set(0.05)
        client.set("told", 1)  # after it, the relay has heard of the delay
        started = time.perf_counter()
        assert client.get("big") == value
        assert time.perf_counter() - started >= 0.1
        # And what is sent while something is on its way waits no longer than that
        delay.set(0)
        client.ping()
        assert client.get("told") == b"1"


def test_a_closed_connection_is_closed_at_the_server(port: int) -> None:
    with Delay(port) as delay, connected(f"redis://127.0.0.1:{port}/0") as direct:
        through = connected(delay.url)
        number = through.client_id()
        # When the client closes / Then the server sees it close
        through.close()
        deadline = time.monotonic() + 20
        while direct.client_list(client_id=[str(number)]):
            assert time.monotonic() < deadline, "still connected"


def test_it_ends_with_its_owner(port: int) -> None:
    with Delay(port) as delay:
        address = int(delay.url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", address), timeout=10)


def test_without_a_server_connections_end() -> None:
    with Delay(1) as delay, connected(delay.url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
