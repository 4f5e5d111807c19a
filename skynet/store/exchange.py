"""The sum of partials among the shards of a stage, inside a span, through Redis lists.

Each shard pushes its partial into every peer's inbox and block-pops its own inboxes, all in one
write. What to do with the partials is the caller's (worker/all_sum.py sums them). The inbox's name
carries epoch, step and position: a late push can never be taken for another, and expires.

This is the hottest code of the system (two sums a layer), so it writes RESP by hand on the socket
of a redis-py connection and reads with hiredis; redis-py's own pipeline costs as much again as
the exchange itself.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

import hiredis
import redis

from skynet import names
from skynet.errors import PeerLost, SkynetError, WireError
from skynet.settings import settings

# magic, dtype, rows, columns
HEADER = struct.Struct("<2sHII")
MAGIC = b"SX"
FLOAT32, BFLOAT16, ABORT = 0, 1, 2
ITEM_BYTES = {FLOAT32: 4, BFLOAT16: 2}
READ_BYTES = 256 * 1024
MAX_ABORT_BYTES = 4096
POP_S = b"1"


class Frame(NamedTuple):
    """A partial as it travels: row-major numbers of one kind, (rows, columns)."""

    kind: int
    rows: int
    columns: int
    data: bytes | bytearray | memoryview


class Exchange:
    """One shard's end of its stage's exchange. Not thread-safe: one connection, one span at a time.

    stage, shard, num_shards: where this shard stands among its peers.
    """

    def __init__(self, url: str, stage: int, shard: int, num_shards: int) -> None:
        self.stage = stage
        self.shard = shard
        self.peers = [peer for peer in range(num_shards) if peer != shard]
        self.timeout_s = settings().exchange_timeout_s
        self.waited_s = 0.0
        self.still_wanted: Callable[[], bool] = lambda: True  # asked after a second of waiting
        self._pool = redis.ConnectionPool.from_url(
            url,
            socket_timeout=self.timeout_s + 5,
            socket_connect_timeout=settings().connect_timeout_s,
        )
        self._connection: redis.Connection | None = None
        self._buffer = bytearray(READ_BYTES)
        self._expire_s = str(int(4 * self.timeout_s)).encode()

    def swap(self, epoch: int, step: int, position: int, mine: Frame) -> dict[int, Frame]:
        """Give `mine` to every peer and take theirs; replies all frames by shard, mine too.

        Raises:
            PeerLost: a peer's partial did not come in time, or the peer failed.
            WireError: a peer sent another shape or kind than this shard has.
        """
        started = time.perf_counter()
        payload = HEADER.pack(MAGIC, mine.kind, mine.rows, mine.columns) + mine.data
        commands = [self._push(epoch, step, position, peer, payload) for peer in self.peers]
        commands += [self._pop(epoch, step, position, peer) for peer in self.peers]
        try:
            connection = self._connect()
            connection.sendall(b"".join(commands))
            replies = self._read_replies(connection, 3 * len(self.peers))[2 * len(self.peers) :]
            for at, peer in enumerate(self.peers):
                while replies[at] is None and self._may_wait(started):
                    connection.sendall(self._pop(epoch, step, position, peer))
                    replies[at] = self._read_replies(connection, 1)[0]
        except (OSError, redis.RedisError) as error:
            self.close()
            raise PeerLost(f"{self._where(position)}: the exchange broke: {error}") from error
        except BaseException:
            self.close()  # replies of this sum must not be read as the next one's
            raise
        finally:
            self.waited_s += time.perf_counter() - started
        frames = {self.shard: mine}
        for peer, reply in zip(self.peers, replies, strict=True):
            frames[peer] = self._unpack(peer, position, reply, mine)
        return frames

    def abort(self, epoch: int, step: int, position: int, reason: str) -> None:
        """Tell the peers, who wait or will wait at `position`, that this shard failed."""
        text = reason.encode()[:MAX_ABORT_BYTES]
        payload = HEADER.pack(MAGIC, ABORT, 1, len(text)) + text
        try:
            connection = self._connect()
            connection.sendall(
                b"".join(self._push(epoch, step, position, peer, payload) for peer in self.peers)
            )
            self._read_replies(connection, 2 * len(self.peers))
        except (OSError, redis.RedisError, SkynetError):
            self.close()  # they find out by their own deadline

    def close(self) -> None:
        """Drop the connection; the next sum opens another."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _may_wait(self, started: float) -> bool:
        """After a pop that brought nothing: is there time, and does anybody still want the step?"""
        return time.perf_counter() - started < self.timeout_s and self.still_wanted()

    def _pop(self, epoch: int, step: int, position: int, peer: int) -> bytes:
        inbox = names.exchange_key(epoch, step, position, self.stage, peer, self.shard)
        return _command(b"BRPOP", inbox.encode(), POP_S)

    def _push(self, epoch: int, step: int, position: int, peer: int, payload: bytes) -> bytes:
        outbox = names.exchange_key(epoch, step, position, self.stage, self.shard, peer).encode()
        return _command(b"LPUSH", outbox, payload) + _command(b"EXPIRE", outbox, self._expire_s)

    def _unpack(self, peer: int, position: int, reply: object, mine: Frame) -> Frame:
        if reply is None:
            raise PeerLost(
                f"{self._where(position)}: no partial from stage{self.stage}.shard{peer} within "
                f"{self.timeout_s:g} s, or the step was given up meanwhile"
            )
        data = reply[1] if isinstance(reply, list) and len(reply) == 2 else reply
        if not isinstance(data, bytes) or len(data) < HEADER.size:
            raise WireError(f"{self._where(position)}: not a partial: {data!r:.80}")
        magic, kind, rows, columns = HEADER.unpack_from(data)
        body = memoryview(data)[HEADER.size :]
        if magic == MAGIC and kind == ABORT:
            reason = bytes(body).decode(errors="replace")
            raise PeerLost(f"stage{self.stage}.shard{peer} failed: {reason}")
        expected = mine.rows * mine.columns * ITEM_BYTES[mine.kind]
        if (magic, kind, rows, columns) != (MAGIC, mine.kind, mine.rows, mine.columns) or (
            len(body) != expected
        ):
            raise WireError(
                f"{self._where(position)}: stage{self.stage}.shard{peer} sent {rows}x{columns} of "
                f"kind {kind} in {len(body)} bytes, expected {mine.rows}x{mine.columns} of kind "
                f"{mine.kind} in {expected}"
            )
        return Frame(kind, rows, columns, body)

    def _where(self, position: int) -> str:
        return f"stage{self.stage}.shard{self.shard}, sum {position}"

    def _connect(self) -> socket.socket:
        if self._connection is None:
            connection = self._pool.make_connection()
            connection.connect()
            if isinstance(getattr(connection, "_sock", None), socket.socket):
                connection._sock.settimeout(self.timeout_s + 5)
            self._connection = connection
        return self._connection._sock  # type: ignore[union-attr, no-any-return]

    def _read_replies(self, connection: socket.socket, count: int) -> list[object]:
        reader = hiredis.Reader()
        replies: list[object] = []
        while len(replies) < count:
            size = connection.recv_into(self._buffer)
            if size == 0:
                raise ConnectionResetError("Redis closed the connection")
            reader.feed(self._buffer, 0, size)
            while (reply := reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise redis.ResponseError(str(reply))
                replies.append(reply)
        return replies


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)
