"""Clients that send nonsense, too much or too slowly: refused, and another one is not hurt."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_fakes import HELLO, FakeClient, decoder, fake_app

from skynet.gateway.config import GatewayConfig
from skynet.gateway.keys import Keys
from skynet.gateway.server import listen, server_of

MIB = 2**20
USER = "user-key-0001"
WAIT_S = 30  # longer than any answer takes
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\n"
    b"Authorization: Bearer user-key-0001\r\nContent-Type: application/json\r\n"
)
CHAT = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A gateway behind a real socket."""
    keys = Keys({USER: "user"}, {})
    config = GatewayConfig(port=0, keys=keys, receive_s=1.0, max_body_bytes=MIB)
    listener = listen(config)
    server = server_of(fake_app(FakeClient(decoder()), config))
    serving = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
    )
    serving.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    serving.join(WAIT_S)
    listener.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def answer_to(port: int, *parts: bytes) -> bytes:
    """What comes back for these bytes until the gateway ends the connection."""
    answer = b""
    with connect(port) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while received := connection.recv(65536):
                answer += received
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has had enough
    return answer


def status_of(answer: bytes) -> int:
    """0: the connection ended without an answer."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


def error_of(answer: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error


def with_body(body: bytes) -> bytes:
    return HEAD + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.fixture(autouse=True)
def unharmed(port: int) -> Iterator[None]:
    """Another client is answered while and after the attack."""
    yield
    answer = answer_to(port, with_body(CHAT))
    assert status_of(answer) == 200
    assert HELLO.encode() in answer


DEEP = b"[" * 50_000
BODIES = {
    "no JSON": b"\x00\xff" * 40,
    "broken UTF-8": b'{"messages": [{"role": "user", "content": "\xc3\x28\xff"}]}',
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "deep": b'{"messages": ' + DEEP + b"]" * len(DEEP) + b"}",
    "deep objects": b'{"messages": [{"role": "user", "content": ' + b'{"a":' * 20_000,
    "a long number": b'{"messages": [], "seed": ' + b"9" * 100_000 + b"}",
    "not a number": b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "many keys": json.dumps({f"key{n}": n for n in range(20_000)}).encode(),
    "many messages": json.dumps({"messages": [{"role": "user"}] * 20_000}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_nonsense_is_refused(port: int, name: str) -> None:
    answer = answer_to(port, with_body(BODIES[name]))
    assert status_of(answer) == 400
    assert error_of(answer)["message"]


def test_a_body_may_be_as_long_as_the_limit_and_not_longer(port: int) -> None:
    # Given / When / Then: at the limit
    longest = CHAT + b" " * (MIB - len(CHAT))
    assert status_of(answer_to(port, with_body(longest))) == 200
    # And beyond it, said before, said wrongly, or not said
    for length in (b"-1", b"1e9", b"9" * 400, b"1048577", b"99999999999"):
        request = HEAD + b"Content-Length: " + length + b"\r\n\r\n" + CHAT
        assert status_of(answer_to(port, request)) in (400, 413)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    answer = answer_to(port, chunked, *[chunk] * 17)
    assert status_of(answer) in (0, 413)  # 0: reset while the rest was sent


def test_heads_and_bodies_that_do_not_come_end_their_connections(port: int) -> None:
    # Given connections with nothing, half a head, and half a body
    half = HEAD + b"Content-Length: 100\r\n\r\n{"
    parts = [b"", HEAD, half] * 20
    connections = [connect(port) for _ in parts]
    for connection, part in zip(connections, parts, strict=True):
        connection.sendall(part)
    # When nothing more comes / Then
    for connection, part in zip(connections, parts, strict=True):
        with connection:
            answer = b""
            while received := connection.recv(65536):
                answer += received
        assert status_of(answer) == (408 if part is half else 0)
        assert not answer or error_of(answer)["code"] == "slow_body"


def test_heads_are_bounded(port: int) -> None:
    many = b"".join(b"X-%d: a\r\n" % n for n in range(20_000))
    for head in (HEAD + many, HEAD + b"X: " + b"a" * MIB, b"GET /" + b"a" * MIB):
        assert status_of(answer_to(port, head + b"\r\n\r\n")) in (0, 400)


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\0" * 50, b"\r\n\0garbage\r\n\r\n"])
def test_garbage_is_never_written_into_an_answer(port: int, garbage: bytes) -> None:
    assert status_of(answer_to(port, garbage)) in (0, 400)
    request = HEAD + f"Content-Length: {len(CHAT)}\r\n\r\n".encode() + CHAT
    answer = answer_to(port, request + garbage)
    if status_of(answer) == 200:
        assert HELLO.encode() in answer
