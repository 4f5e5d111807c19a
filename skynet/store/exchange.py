"""Exchanges partials among the shards of a stage, within a span, through Redis lists.

Each shard pushes its partial into every peer's inbox and block-pops its inboxes, all in one
write; `skynet/worker/all_reduce.py` adds the partials. An inbox's name contains epoch, step and
position: a late push is never taken for another, and expires.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis

from skynet.errors import NotFinite, PeerLost, WireError
from skynet.settings import settings
from skynet.store.resp import RespConnection
from skynet.wire import keys
from skynet.wire.frame import Frame

# Instead of a frame, before the reason: a shard failed, or computed NaN or infinity.
ABORT, NOT_FINITE = b"SXabort:", b"SXnotfinite:"
MAX_ABORT_BYTES = 4096
# Templates: `resp.command` would take some microseconds more for each sum.
_PUSH = b"*3\r\n$5\r\nLPUSH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_EXPIRE = b"*3\r\n$6\r\nEXPIRE\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_POP = b"*3\r\n$5\r\nBRPOP\r\n$%d\r\n%b\r\n$4\r\n0.25\r\n"  # for 0.25 s, then again


class Exchange:
    """One shard's end of its stage's exchange. Not thread-safe: one connection, one span at a time.

    waited_s: seconds spent in `swap`, for the caller to reset.
    still_wanted: asked four times a second during a wait; False gives up.
    """

    def __init__(self, url: str, stage: int, shard: int, num_shards: int) -> None:
        self.stage = stage
        self.shard = shard
        self.peers = [peer for peer in range(num_shards) if peer != shard]
        self.timeout_s = settings().exchange_timeout_s
        self.waited_s = 0.0
        self.still_wanted: Callable[[], bool] = lambda: True
        spin_s = settings().exchange_spin_us * 1e-6
        self._connection = RespConnection(url, self.timeout_s + 5, spin_s)
        self._inbox = keys.exchange_format(stage)
        self._expire_s = str(int(4 * self.timeout_s)).encode()

    def swap(self, epoch: int, step: int, position: int, mine: Frame) -> dict[int, Frame]:
        """Send `mine` to every peer, receive the peers' frames; returns all by shard, `mine` too.

        Raises:
            PeerLost: a peer's partial did not arrive in time, or the peer failed.
            NotFinite: a peer found NaN or infinity among its numbers; the error is the peer's.
            WireError: a peer's partial is malformed, or of another shape or kind than `mine`.
        """
        started = time.perf_counter()
        commands = self._pushes(epoch, step, position, mine.encode())
        commands += [self._pop(epoch, step, position, peer) for peer in self.peers]
        try:
            replies = self._connection.call(commands)[2 * len(self.peers) :]
            for at, peer in enumerate(self.peers):
                while replies[at] is None and self._may_wait(started):
                    replies[at] = self._connection.call([self._pop(epoch, step, position, peer)])[0]
        except redis.RedisError as error:
            raise PeerLost(f"{self._where(position)}: the exchange broke: {error}") from error
        finally:
            self.waited_s += time.perf_counter() - started
        frames = {self.shard: mine}
        for peer, reply in zip(self.peers, replies, strict=True):
            frames[peer] = self._unpack(peer, position, reply, mine)
        return frames

    def abort(self, epoch: int, step: int, position: int, error: Exception) -> None:
        """Tell the peers, waiting at `position` now or later, how this shard failed."""
        named = isinstance(error, PeerLost | NotFinite)
        reason = str(error) if named else f"{type(error).__name__}: {error}"
        marker = NOT_FINITE if isinstance(error, NotFinite) else ABORT
        payload = marker + reason.encode()[:MAX_ABORT_BYTES]
        try:
            self._connection.call(self._pushes(epoch, step, position, payload))
        except redis.RedisError:
            pass  # the peers' deadlines end their wait

    def close(self) -> None:
        """Drop the connection; the next sum opens another."""
        self._connection.close()

    def _may_wait(self, started: float) -> bool:
        """After an empty pop: whether there is time left and the step is still wanted."""
        return time.perf_counter() - started < self.timeout_s and self.still_wanted()

    def _pop(self, epoch: int, step: int, position: int, peer: int) -> bytes:
        inbox = self._inbox % (epoch, step, position, peer, self.shard)
        return _POP % (len(inbox), inbox)

    def _pushes(self, epoch: int, step: int, position: int, payload: bytes) -> list[bytes]:
        commands = []
        for peer in self.peers:
            outbox = self._inbox % (epoch, step, position, self.shard, peer)
            commands.append(_PUSH % (len(outbox), outbox, len(payload), payload))
            commands.append(_EXPIRE % (len(outbox), outbox, len(self._expire_s), self._expire_s))
        return commands

    def _unpack(self, peer: int, position: int, reply: Any, mine: Frame) -> Frame:
        if reply is None:
            raise PeerLost(
                f"{self._where(position)}: no partial from stage{self.stage}.shard{peer} within "
                f"{self.timeout_s:g} s, or the step was given up"
            )
        data = reply[1] if isinstance(reply, list) and len(reply) == 2 else reply
        sender = f"stage{self.stage}.shard{peer}"
        if isinstance(data, bytes) and data.startswith(ABORT):
            raise PeerLost(f"{sender} failed: {data[len(ABORT) :].decode(errors='replace')}")
        if isinstance(data, bytes) and data.startswith(NOT_FINITE):
            raise NotFinite(data[len(NOT_FINITE) :].decode(errors="replace"))
        try:
            frame = Frame.decode(data)
        except WireError as error:
            raise WireError(
                f"{self._where(position)}: {sender} sent a malformed partial: {error}"
            ) from error
        if frame[:3] != mine[:3]:
            raise WireError(f"{self._where(position)}: {sender} sent {frame}, expected {mine}")
        return frame

    def _where(self, position: int) -> str:
        return f"stage{self.stage}.shard{self.shard}, sum {position}"
