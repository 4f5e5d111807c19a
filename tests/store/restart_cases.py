"""A request on a server that a test stops and starts again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skynet.local.server import EmbeddedServer
from skynet.request.record import End, Options, Record, Token
from skynet.store.connection import connect
from skynet.store.requests import Requests

TOKENS = [Token(index, 10 + index, f"{index} ") for index in range(4)]
END = End("!", "stop", timings={"total_s": 1.5})


@contextmanager
def one_waiting(server: EmbeddedServer) -> Iterator[Requests]:
    """The requests of the server: one, r1, which waits."""
    with connect(server.url) as client:
        requests = Requests(client, 1000)
        now = requests.now()
        requests.create(Record("r1", (1, 2, 3), Options(max_tokens=9), now, now + 600))
        yield requests


def append(requests: Requests, *tokens: Token) -> None:
    for token in tokens:
        assert requests.writer.append([("r1", token)]) == [1]


def lasting(requests: Requests) -> None:
    """What is in Redis now will be there after a restart."""
    assert requests.client.save()
