"""The handshake of a link: both ends prove the plan's secret, and a stranger gets nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from skynet.errors import LinkRefused
from skynet.exchange import handshake
from skynet.exchange.group import Group
from skynet.exchange.handshake import HELLO, KNOWN, MAGIC, NOT_YET, accept, dial, welcome

LISTENER = Group(3, 1, 0, 2, "feedbeef", "ab" * 32, ("m0", "m1"))
DIALER = replace(LISTENER, shard=1)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(dialer's, listener's)."""
    pair = socket.socketpair()
    for end in pair:
        end.settimeout(10)
    yield pair
    for end in pair:
        end.close()


def listen(end: socket.socket, group: Group | None) -> Any:
    def expecting(epoch: int, plan: bytes, *shards: int) -> Group | None:
        known = group is not None and (epoch, plan) == (group.epoch, group.plan_id.encode())
        return group if known else None

    try:
        accepted = accept(end, expecting)
        if accepted is not None:
            welcome(end)
        return accepted
    except BaseException:
        end.close()
        raise


def shake(
    ends: tuple[socket.socket, socket.socket], dialer: Group, listener: Group | None
) -> tuple[Future[Any], Future[Any]]:
    with ThreadPoolExecutor(2) as pool:
        heard = pool.submit(listen, ends[1], listener)
        said = pool.submit(dial, ends[0], dialer, 0)
    return said, heard


def test_both_ends_prove_the_secret(ends: tuple[socket.socket, socket.socket]) -> None:
    # When two shards of a plan shake hands
    said, heard = shake(ends, DIALER, LISTENER)
    # Then the dialer knows the round trip, the listener the dialer
    assert 0 < said.result() < 5
    assert heard.result() == (LISTENER, 1)
    # And the link has no bytes of the handshake left
    ends[0].sendall(b"first")
    ends[1].settimeout(10)
    assert ends[1].recv(100) == b"first"


def test_a_listener_without_the_plan_says_not_yet(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    # Given a listener of an earlier epoch
    said, heard = shake(ends, DIALER, replace(LISTENER, epoch=2))
    assert said.result() is None
    assert heard.result() is None


@pytest.mark.parametrize(
    "change",
    [{"secret": "cd" * 32}, {"members": ("m0", "another")}],
    ids=["another secret", "another member"],
)
def test_ends_that_do_not_agree_refuse(
    ends: tuple[socket.socket, socket.socket], change: dict[str, Any]
) -> None:
    # When the dialer has another idea of the plan
    said, heard = shake(ends, replace(DIALER, **change), LISTENER)
    # Then the listener's proof is refused, and the dialer sends none
    with pytest.raises(LinkRefused, match=r"stage1\.shard0 does not know the secret of plan 3"):
        said.result()
    ends[0].close()
    assert isinstance(heard.exception(), OSError)


def hello(shard: int = 1) -> bytes:
    return HELLO.pack(MAGIC, 3, b"feedbeef", 1, shard, 0, bytes(32))


@pytest.mark.parametrize("proof", [bytes(32), None], ids=["zeros", "the listener's, reflected"])
def test_a_dialer_without_the_secret_is_refused(
    ends: tuple[socket.socket, socket.socket], proof: bytes | None
) -> None:
    # Given a stranger that knows the plan's id
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(listen, ends[1], LISTENER)
        ends[0].sendall(hello())
        answer = b""
        while len(answer) < 1 + 32 + 32:
            answer += ends[0].recv(100)
        assert answer[:1] == KNOWN
        # When it answers with zeros, or with the listener's own proof
        ends[0].sendall(answer[33:] if proof is None else proof)
    # Then it is refused, without a welcome
    with pytest.raises(LinkRefused, match="the dialer does not know the secret"):
        heard.result()
    assert ends[0].recv(100) == b""


@pytest.mark.parametrize("stranger", [b"GET / HTTP/1.1\r\n" * 20, b"*1\r\n$4\r\nPING\r\n" * 20])
def test_a_stranger_is_refused(ends: tuple[socket.socket, socket.socket], stranger: bytes) -> None:
    ends[0].sendall(stranger)
    with pytest.raises(LinkRefused, match="does not speak this protocol"):
        listen(ends[1], LISTENER)


def test_a_silent_dialer_is_given_up(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.01)
    with pytest.raises(TimeoutError):
        listen(ends[1], LISTENER)


def test_a_server_of_another_kind_is_refused(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(b"-ERR unknown command\r\n")
    with pytest.raises(LinkRefused, match="not a SkyNet worker"):
        dial(ends[0], DIALER, 0)


def test_the_answers_to_a_hello_differ() -> None:
    assert NOT_YET != KNOWN


def test_a_group_does_not_show_its_secret() -> None:
    assert "ab" * 8 not in repr(LISTENER)
