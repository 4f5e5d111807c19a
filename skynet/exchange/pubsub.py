"""Partials through Redis: published once for all peers, to subscriptions that stand before.

Nothing is stored, and nothing reaches Redis's append-only file or its replicas' data. What is
published before a peer has subscribed, or after its connection broke, is lost: the number of
receivers that Redis replies tells the sender.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import redis

from skynet.exchange.group import Group
from skynet.redis_url import RedisURL
from skynet.store.resp import RespConnection, command
from skynet.wire import keys
from skynet.wire.exchange_message import Message, read_message

_PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n"
NUM_PINGS = 5
MAX_LATE = 64  # messages kept of one peer; it is ahead by two at most


class PubSub:
    """The shards of a group that exchange through one Redis: two connections each."""

    def __init__(self, url: str | RedisURL, group: Group, timeout_s: float, spin_s: float) -> None:
        self.group = group
        self.peers: list[int] = []
        self.round_trip_s = 0.0
        self._publisher = RespConnection(url, timeout_s, spin_s)
        self._subscriber = Subscriber(url, timeout_s)
        self._inboxes: dict[int, deque[bytes]] = {}
        self._senders: dict[bytes, int] = {}
        self._due: list[int] = []  # receivers that each PUBLISH without a reply yet needs

    def open(self, peers: Sequence[int]) -> None:
        """Subscribe to what these peers publish, and measure a round trip.

        Raises:
            redis.RedisError: Redis is away, or refuses it.
        """
        group = self.group
        self.peers = list(peers)
        self._inboxes = {peer: deque(maxlen=MAX_LATE) for peer in peers}
        self._senders = {
            keys.exchange_channel(group.epoch, group.stage, peer, receiver): peer
            for peer in peers
            for receiver in (None, group.shard)
        }
        if peers:
            self._subscriber.subscribe(list(self._senders))
            self.round_trip_s = min(self._ping() for _ in range(NUM_PINGS))

    def publish(self, parts: Sequence[bytes | memoryview], receiver: int | None = None) -> None:
        """Send a message to all peers, or to one of them; `check` reads Redis's reply."""
        if self._due:  # of a sum that was given up
            self.check()
        group = self.group
        channel = keys.exchange_channel(group.epoch, group.stage, group.shard, receiver)
        size = sum(len(part) for part in parts)
        head = _PUBLISH % (len(channel), channel, size)
        self._publisher.send(b"".join((head, *parts, b"\r\n")))
        self._due.append(len(self.peers) if receiver is None else 1)

    def check(self) -> None:
        """Read the replies to `publish`.

        Raises:
            redis.RedisError: the connection broke, or a peer is not subscribed.
        """
        due, self._due = self._due, []
        replies = self._publisher.receive(len(due))
        if any(reply < needed for reply, needed in zip(replies, due, strict=True)):
            raise redis.ConnectionError("a peer's subscription is closed")

    def receive(self, peer: int, tag: bytes, expected: int) -> Message | None:
        """The message of this tag from a peer, if it has arrived; those of other sums are dropped.

        Raises:
            redis.RedisError: the connection broke.
            WireError: not a message, or of another size.
        """
        inbox = self._inboxes[peer]
        while True:
            while inbox:
                message = read_message(inbox.popleft(), tag, expected)
                if message is not None:
                    return message
            arrived = self._subscriber.messages()
            if not arrived:
                return None
            for channel, payload in arrived:
                if channel in self._senders:
                    self._inboxes[self._senders[channel]].append(payload)

    def fileno(self) -> int:
        """Of the subscription."""
        return self._subscriber.fileno()

    def is_pending(self) -> bool:
        """Whether bytes are left that the socket does not tell of."""
        return self._subscriber.is_pending()

    def close(self) -> None:
        self._publisher.close()
        self._subscriber.close()

    def _ping(self) -> float:
        started = time.perf_counter()
        self._publisher.call([command(b"PING")])
        return time.perf_counter() - started


class Subscriber(RespConnection):
    """A subscribed connection. It is not opened again: what was published meanwhile is lost."""

    def subscribe(self, channels: Sequence[bytes]) -> None:
        self.close()
        self.call([command(b"SUBSCRIBE", channel) for channel in channels])

    def messages(self) -> list[tuple[bytes, bytes]]:
        """(channel, payload) of all messages that have arrived; does not wait.

        Raises:
            redis.RedisError: the connection broke.
        """
        if self._socket is None:
            raise redis.ConnectionError("the subscription is closed")
        try:
            size = self._receive_now()
            if size == 0:
                raise ConnectionResetError("Redis closed the connection")
            if size < 0:
                return []
            self._reader.feed(self._buffer, 0, size)
            replies = iter(self._reader.gets, False)
            return [(reply[1], reply[2]) for reply in replies if _is_message(reply)]
        except BaseException as error:
            self._close_and_raise(error)

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def is_pending(self) -> bool:
        """Whether TLS has decrypted bytes that are not yet read."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def _receive_now(self) -> int:
        """Bytes read into the buffer; 0: the end, -1: nothing is there yet."""
        if isinstance(self._socket, ssl.SSLSocket):
            if not self.is_pending() and not select.select([self._socket], [], [], 0)[0]:
                return -1
            return int(self._socket.recv_into(self._buffer))
        try:
            return int(self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return -1


def _is_message(reply: Any) -> bool:
    return (
        isinstance(reply, list)
        and len(reply) == 3
        and reply[0] == b"message"
        and isinstance(reply[2], bytes)
    )
