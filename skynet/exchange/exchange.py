"""Exchanges partials among the shards of a stage, within a span.

Each shard sends its partial to every peer and receives theirs: by direct links where there are any,
else through Redis. All add the partials in shard order, so that their sums have the same bits.
Messages carry epoch, step and position: a late one is never taken for another.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping

import redis

from skynet.errors import NotFinite, PeerLost, WireError
from skynet.exchange.fast_sum import FastSum
from skynet.exchange.group import Group
from skynet.exchange.link import Link
from skynet.exchange.pubsub import PubSub
from skynet.kernels.sums import Sums
from skynet.redis_url import RedisURL
from skynet.settings import settings
from skynet.wire.exchange_message import (
    FAILED,
    MAX_REASON_BYTES,
    NOT_FINITE,
    PARTIAL,
    Message,
    header_of,
    tag_of,
)
from skynet.wire.frame import HEADER, Frame

Sum = tuple[int, int, int]
"""(epoch, step, position)"""

ASK_S = 0.25  # interval at which a waiting shard asks if the step is still wanted


class Exchange:
    """One shard's end of its stage's exchange. Not thread-safe: one span at a time.

    A peer that is lost stays lost: the next epoch has an exchange of its own.

    waited_s: seconds spent waiting for partials, for the caller to reset.
    still_wanted: asked four times a second during a wait; False gives up.
    spins: whether to poll for SKYNET_EXCHANGE_SPIN_US before sleeping.
    """

    def __init__(self, group: Group, url: str | RedisURL) -> None:
        self.group = group
        self.shard = group.shard
        self.peers = group.peers
        self.links: dict[int, Link] = {}
        self.timeout_s = settings().exchange_timeout_s
        self.waited_s = 0.0
        self.still_wanted: Callable[[], bool] = lambda: True
        self.spins = True
        self._fast: FastSum | None = None
        self._spin_s = settings().exchange_spin_us * 1e-6
        self.redis = PubSub(url, group, self.timeout_s + 5, self._spin_s)

    def open(self, links: Mapping[int, Link]) -> None:
        """Exchange by these links, and through Redis with the other peers.

        Raises:
            redis.RedisError: Redis is away, or refuses to subscribe.
        """
        self.links = dict(links)
        self.redis.open([peer for peer in self.peers if peer not in self.links])
        self._fast = FastSum.over(self.links, self.shard, self.group.num_shards)

    def swap(self, epoch: int, step: int, position: int, mine: Frame) -> dict[int, Frame]:
        """Send `mine` to every peer, receive the peers' frames; returns all by shard, `mine` too.

        A received frame is valid until the next call.

        Raises:
            PeerLost: a peer's partial did not arrive in time, or the peer failed.
            NotFinite: a peer found NaN or infinity among its numbers; the error is the peer's.
            WireError: a peer's partial is malformed, or of another shape or kind than `mine`.
        """
        return {**self.transfer((epoch, step, position), 0, mine, mine), self.shard: mine}

    def transfer(
        self,
        at: Sum,
        part: int,
        outgoing: Frame | Mapping[int, Frame],
        expected: Frame | Mapping[int, Frame],
    ) -> dict[int, Frame]:
        """Send frames, one to all peers or one for each; receive one of each peer, of the kind and
        shape that is expected. Raises as `swap`.

        part: numbers the transfers of a sum.
        """
        started, (epoch, step, position) = time.perf_counter(), at
        tag = tag_of(epoch, step, position, part)
        try:
            self._send(tag, position, outgoing)
            return self._receive(tag, position, expected, started)
        except redis.RedisError as error:
            raise PeerLost(f"{self._where(position)}: the exchange broke: {error}") from error
        finally:
            self.waited_s += time.perf_counter() - started

    def try_fast(self, at: Sum, shape: tuple[int, int], data: int, total: int) -> bool | None:
        """Write the sum at `total`, if that goes quickly; False: `finish` must go on.

        None: nothing was done. data, total: addresses of contiguous float32 of this shape.
        """
        if self._fast is None:
            return None
        started = time.perf_counter()
        spin_s = self._spin_s if self.spins else 0.0
        done = self._fast.run(tag_of(*at), shape, data, total, spin_s)
        self.waited_s += time.perf_counter() - started
        return done

    def fast_sums(self, at: Sum, shape: tuple[int, int]) -> Sums | None:
        """For sums in C from `at` on; the first one that is not done there is for `finish`.

        None: they do not go that way. The caller adds what they waited to `waited_s`.
        """
        if self._fast is None:
            return None
        return self._fast.sums(tag_of(*at), shape, self._spin_s if self.spins else 0.0)

    def finish(self, at: Sum, mine: Frame) -> dict[int, Frame]:
        """As `swap`, for what `try_fast` or `fast_sums` has begun."""
        started, tag, position = time.perf_counter(), tag_of(*at), at[2]
        polled_since = started - self._spin_s  # by `try_fast`
        if self._fast is not None:
            self._fast.resume(_parts(tag, mine))
        try:
            return {**self._receive(tag, position, mine, polled_since), self.shard: mine}
        finally:
            self.waited_s += time.perf_counter() - started

    def abort(self, epoch: int, step: int, position: int, error: Exception) -> None:
        """Tell the peers, waiting at `position` now or later, how this shard failed."""
        named = isinstance(error, PeerLost | NotFinite)
        reason = str(error) if named else f"{type(error).__name__}: {error}"
        payload = reason.encode()[:MAX_REASON_BYTES]
        kind = NOT_FINITE if isinstance(error, NotFinite) else FAILED
        header = header_of(tag_of(epoch, step, position), len(payload), kind)
        for link in self.links.values():
            try:
                link.send(header, payload)
            except OSError:
                continue  # the peer knows: its end is closed too
            if link.sending:  # in the middle of a message: only the end of the link tells
                link.close()
        if self.redis.peers:
            try:
                self.redis.publish((header, payload))
                self.redis.check()
            except redis.RedisError:
                pass  # the peers' deadlines end their wait

    def close(self) -> None:
        """Drop the connections."""
        for link in self.links.values():
            link.close()
        self.redis.close()

    # -- one round -----------------------------------------------------------------------------

    def _send(self, tag: bytes, position: int, outgoing: Frame | Mapping[int, Frame]) -> None:
        if self.redis.peers:
            if isinstance(outgoing, Frame):
                self.redis.publish(_parts(tag, outgoing))
            else:
                for peer in self.redis.peers:
                    self.redis.publish(_parts(tag, outgoing[peer]), peer)
        for peer, link in self.links.items():
            frame = outgoing if isinstance(outgoing, Frame) else outgoing[peer]
            try:
                link.send(*_parts(tag, frame))
            except OSError as error:
                raise self._broken(position, peer, error) from error

    def _receive(
        self, tag: bytes, position: int, expected: Frame | Mapping[int, Frame], started: float
    ) -> dict[int, Frame]:
        frames: dict[int, Frame] = {}
        waiting, asked = self.peers, started
        spin_until = started + self._spin_s if self.spins else started
        while True:
            still = []
            for peer in waiting:
                wanted = expected if isinstance(expected, Frame) else expected[peer]
                message = self._message(tag, position, peer, wanted)
                if message is None:
                    still.append(peer)
                else:
                    frames[peer] = self._unpack(peer, position, message, wanted)
            moved = self._send_more(position) or len(still) < len(waiting)
            waiting = still
            if not waiting and not any(link.sending for link in self.links.values()):
                break
            now = time.perf_counter()
            if moved or now < spin_until:
                os.sched_yield()
                continue
            if now - asked >= ASK_S:
                asked = now
                if now - started >= self.timeout_s or not self.still_wanted():
                    raise self._silent(position, waiting)
            self._sleep(waiting, min(ASK_S, max(0.0, started + self.timeout_s - now)))
        if self.redis.peers:
            self.redis.check()
        return frames

    def _message(self, tag: bytes, position: int, peer: int, wanted: Frame) -> Message | None:
        link, size = self.links.get(peer), HEADER.size + len(wanted.data)
        try:
            if link is None:
                return self.redis.receive(peer, tag, size)
            return link.receive(tag, size)
        except OSError as error:
            raise self._broken(position, peer, error) from error
        except WireError as error:
            raise WireError(
                f"{self._where(position)}: {self.group.name(peer)} sent {error}: not {wanted}"
            ) from error

    def _send_more(self, position: int) -> bool:
        """Send what sockets did not take before; whether any of it was sent."""
        moved = False
        for peer, link in self.links.items():
            if link.sending:
                try:
                    moved |= link.send_more()
                except OSError as error:
                    raise self._broken(position, peer, error) from error
        return moved

    def _sleep(self, waiting: list[int], seconds: float) -> None:
        """Wait until a peer's bytes arrive, or a socket takes more of this shard's."""
        poll = select.poll()
        for peer, link in self.links.items():
            events = (select.POLLIN if peer in waiting else 0) | (
                select.POLLOUT if link.sending else 0
            )
            if events:
                poll.register(link, events)
        if not all(peer in self.links for peer in waiting):
            self.redis.check()  # a peer that is not subscribed is lost
            if self.redis.is_pending():
                return
            poll.register(self.redis, select.POLLIN)
        poll.poll(seconds * 1000)

    def _unpack(self, peer: int, position: int, message: Message, wanted: Frame) -> Frame:
        if message.kind == PARTIAL and message.data[: HEADER.size] == wanted.header:
            return Frame(*wanted[:3], memoryview(message.data)[HEADER.size :])
        sender = self.group.name(peer)
        if message.kind == FAILED:
            raise PeerLost(f"{sender} failed: {bytes(message.data).decode(errors='replace')}")
        if message.kind == NOT_FINITE:
            raise NotFinite(bytes(message.data).decode(errors="replace"))
        try:
            frame = Frame.decode(message.data)
        except WireError as error:
            raise WireError(
                f"{self._where(position)}: {sender} sent a malformed partial: {error}"
            ) from error
        raise WireError(f"{self._where(position)}: {sender} sent {frame}, expected {wanted}")

    # -- errors --------------------------------------------------------------------------------

    def _broken(self, position: int, peer: int, error: OSError) -> PeerLost:
        return PeerLost(
            f"{self._where(position)}: the link to {self.group.name(peer)} broke: {error}"
        )

    def _silent(self, position: int, waiting: list[int]) -> PeerLost:
        peers = ", ".join(map(self.group.name, waiting))
        return PeerLost(
            f"{self._where(position)}: no partial from {peers} within {self.timeout_s:g} s, or "
            "the step was given up"
        )

    def _where(self, position: int) -> str:
        return f"{self.group.name()}, sum {position}"


def _parts(tag: bytes, frame: Frame) -> tuple[bytes, bytes, bytes | memoryview]:
    """A message in the parts that a socket takes without copies."""
    return header_of(tag, HEADER.size + len(frame.data)), frame.header, frame.data
