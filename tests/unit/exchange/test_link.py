"""A link's messages: whole, checked before anything is allocated, late ones dropped."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from skynet.errors import WireError
from skynet.exchange.link import BUFFER_BYTES, SOCKET_BYTES, Link
from skynet.wire.exchange_message import (
    FAILED,
    MAX_REASON_BYTES,
    NOT_FINITE,
    PARTIAL,
    header_of,
    tag_of,
)

TAG, LATE = tag_of(4, 5, 6), tag_of(4, 5, 5)


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    mine, other = socket.socketpair()
    other.settimeout(10)
    yield Link(mine, "unix"), other
    mine.close()
    other.close()


def message(payload: bytes, tag: bytes = TAG, kind: int = PARTIAL) -> bytes:
    return header_of(tag, len(payload), kind) + payload


def test_a_message_in_pieces_is_received_whole(ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    # Given a message that comes byte by byte, and the start of the next one
    for byte in message(b"abc"):
        assert link.receive(TAG, 3) is None
        other.sendall(bytes([byte]))
    other.sendall(message(b"xyz", tag_of(4, 5, 7))[:-1])
    # When / Then
    arrived = link.receive(TAG, 3)
    assert arrived is not None
    assert (arrived.kind, bytes(arrived.data)) == (PARTIAL, b"abc")
    # And then the next
    assert link.receive(tag_of(4, 5, 7), 3) is None
    other.sendall(b"z")
    assert bytes(link.receive(tag_of(4, 5, 7), 3).data) == b"xyz"  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [0, 1, BUFFER_BYTES - 30, BUFFER_BYTES, 3 * BUFFER_BYTES + 1])
def test_late_messages_of_any_size_are_dropped(ends: tuple[Link, socket.socket], size: int) -> None:
    link, other = ends
    # Given messages of sums that were given up, before the awaited one
    data = message(bytes(size), LATE) * 3 + message(b"abc")
    received = None
    for start in range(0, len(data), 50_000):
        other.sendall(data[start : start + 50_000])
        received = link.receive(TAG, 3)
    # Then it is received, and the buffer has not grown for the others
    assert received is not None
    assert bytes(received.data) == b"abc"
    assert len(link._buffer) == BUFFER_BYTES


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"four", PARTIAL),
        (b"", PARTIAL),
        (b"abc", 7),
        (bytes(MAX_REASON_BYTES + 1), FAILED),
        (bytes(MAX_REASON_BYTES + 1), NOT_FINITE),
    ],
)
def test_a_message_of_another_size_or_kind_is_refused(
    ends: tuple[Link, socket.socket], payload: bytes, kind: int
) -> None:
    link, other = ends
    other.sendall(message(payload, kind=kind))
    with pytest.raises(WireError, match=f"a message of kind {kind}"):
        link.receive(TAG, 3)


def test_a_size_is_refused_before_its_bytes_come(ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    # Given a header that announces 4 GB
    other.sendall(header_of(TAG, 2**32 - 1))
    # When / Then
    with pytest.raises(WireError, match="4294967295 bytes"):
        link.receive(TAG, 3)
    assert len(link._buffer) == BUFFER_BYTES


def test_an_end_is_told(ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    # Given a last message, then the end
    other.sendall(message(b"why", kind=FAILED))
    other.close()
    # When / Then
    assert link.receive(TAG, 3) is not None
    with pytest.raises(ConnectionResetError, match="closed"):
        link.receive(TAG, 3)


def test_what_the_socket_does_not_take_is_sent_later(ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    # Given more than the socket takes
    large = bytes(range(256)) * (8 * SOCKET_BYTES // 256)
    link.send(b"head", memoryview(large))
    assert link.sending
    # When the peer reads
    received = b""
    while len(received) < 4 + len(large):
        if link.sending:
            link.send_more()
        received += other.recv(2**20)
    # Then it has all of it in order
    assert received == b"head" + large
    assert not link.sending


def test_a_unix_socket_takes_a_partial_of_a_prompt_at_once(
    ends: tuple[Link, socket.socket],
) -> None:
    # Given a link, and what the system grants a Unix socket that asks for as much
    link, _ = ends
    with socket.socket(socket.AF_UNIX) as plain:
        before = plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        granted = plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    # When / Then a message that is larger than what is common is sent without waiting for the peer
    assert granted > before
    link.send(b"head", bytes(granted // 4))
    assert not link.sending
