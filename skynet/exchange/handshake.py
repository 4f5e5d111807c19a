"""Both ends of a link prove that they know the plan's secret, and which shard they are.

    dialer    hello: magic, group (epoch, plan id, stage, both shards), nonce
    listener  status; if it has the plan: nonce, proof of the listener
    dialer    proof of the dialer
    listener  welcome; then it sends back what the dialer sends to measure round trips

All sizes are fixed, so nothing is allocated by what a stranger sends. A proof is an HMAC-SHA256 of
the role, both members' ids, the hello and both nonces. Links are authenticated, not encrypted.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable

from skynet.errors import LinkRefused
from skynet.exchange.group import Group

# magic, epoch, plan id, stage, the dialer's shard, the listener's shard, nonce
HELLO = struct.Struct("<8sQ16sIII32s")
MAGIC = b"SKYLINK1"
NONCE_BYTES = PROOF_BYTES = 32
NOT_YET, KNOWN, WELCOME = b"\x00", b"\x01", b"\x02"
NUM_PINGS = 10
TIMEOUT_S = 2.0

Accepting = Callable[[int, bytes, int, int, int], "Group | None"]
"""(epoch, plan id, stage, dialer's shard, own shard) -> the group that expects this link."""


def dial(sock: socket.socket, group: Group, peer: int) -> float | None:
    """The dialer's end of the handshake; returns the round trip in seconds.

    None: the peer has not taken its place in the plan yet.

    Raises:
        LinkRefused: the other end is not this peer.
        OSError: the connection broke or did not answer in time.
    """
    deadline = time.monotonic() + TIMEOUT_S
    nonce = secrets.token_bytes(NONCE_BYTES)
    hello = HELLO.pack(
        MAGIC, group.epoch, group.plan_id.encode(), group.stage, group.shard, peer, nonce
    )
    sock.sendall(hello)
    if (status := _read(sock, 1, deadline)) == NOT_YET:
        return None
    if status != KNOWN:
        raise LinkRefused(f"{group.name(peer)} answers with {status!r}: not a SkyNet worker")
    theirs = _read(sock, NONCE_BYTES, deadline)
    transcript = hello + theirs
    if not _is_proof(_read(sock, PROOF_BYTES, deadline), b"listener", group, peer, transcript):
        raise LinkRefused(f"{group.name(peer)} does not know the secret of plan {group.epoch}")
    sock.sendall(_proof(b"dialer", group, peer, transcript))
    if _read(sock, 1, deadline) != WELCOME:
        raise LinkRefused(f"{group.name(peer)} does not welcome {group.name()}")
    return min(_ping(sock, deadline) for _ in range(NUM_PINGS))


def accept(sock: socket.socket, expecting: Accepting) -> tuple[Group, int] | None:
    """The listener's end, before its welcome; returns the group and the dialer's shard.

    None: this worker has not taken its place in the plan yet.

    Raises:
        LinkRefused: the dialer is not the shard that it claims to be.
        OSError: the connection broke or was silent for too long.
    """
    deadline = time.monotonic() + TIMEOUT_S
    hello = _read(sock, HELLO.size, deadline)
    magic, epoch, plan_id, stage, dialer, shard, _ = HELLO.unpack(hello)
    if magic != MAGIC:
        raise LinkRefused("the dialer does not speak this protocol")
    group = expecting(epoch, plan_id.rstrip(b"\0"), stage, dialer, shard)
    if group is None:
        sock.sendall(NOT_YET)
        return None
    nonce = secrets.token_bytes(NONCE_BYTES)
    transcript = hello + nonce
    sock.sendall(KNOWN + nonce + _proof(b"listener", group, dialer, transcript))
    if not _is_proof(_read(sock, PROOF_BYTES, deadline), b"dialer", group, dialer, transcript):
        raise LinkRefused(f"the dialer does not know the secret of plan {epoch}")
    return group, dialer


def welcome(sock: socket.socket) -> None:
    """The end of the listener's handshake, once it keeps the link; the socket no longer blocks.

    Raises:
        OSError: the connection broke or was silent for too long.
    """
    deadline = time.monotonic() + TIMEOUT_S
    sock.sendall(WELCOME)
    for _ in range(NUM_PINGS - 1):
        sock.sendall(_read(sock, 1, deadline))
    last = _read(sock, 1, deadline)
    sock.setblocking(False)  # the dialer takes the answer for the link's start
    sock.send(last)


def _proof(role: bytes, group: Group, peer: int, transcript: bytes) -> bytes:
    """An HMAC over everything that the ends must agree on."""
    ends = sorted((group.shard, peer))
    members = "|".join(group.members[shard] for shard in ends if shard < len(group.members))
    message = role + members.encode() + transcript
    return hmac.digest(bytes.fromhex(group.secret), message, "sha256")


def _is_proof(proof: bytes, role: bytes, group: Group, peer: int, transcript: bytes) -> bool:
    return hmac.compare_digest(proof, _proof(role, group, peer, transcript))


def _ping(sock: socket.socket, deadline: float) -> float:
    started = time.perf_counter()
    sock.sendall(b"\0")
    _read(sock, 1, deadline)
    return time.perf_counter() - started


def _read(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer to the handshake in time")
        sock.settimeout(left)
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("closed in the handshake")
        data += piece
    return data
