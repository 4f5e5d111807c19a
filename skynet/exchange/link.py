"""A link: an authenticated socket to one peer. Nothing here blocks."""

from __future__ import annotations

import socket
from collections import deque

from skynet.wire.exchange_message import HEADER, TAG_AT, Message, check_size, start_of

BUFFER_BYTES = 64 * 1024
# What a Unix socket takes at once, as far as the system allows: a partial of 512 tokens of some
# hundred numbers, so that no shard waits until its peer reads. TCP chooses its own size.
SOCKET_BYTES = 2 * 1024 * 1024


class Link:
    """One end of a link. After an OSError or a WireError it is of no use.

    kind: "unix" or "tcp".
    round_trip_s: measured when the link was made; 0: by the other end.
    """

    def __init__(self, sock: socket.socket, kind: str, round_trip_s: float = 0.0) -> None:
        self.kind = kind
        self.round_trip_s = round_trip_s
        self._socket = sock
        self._socket.setblocking(False)
        if kind == "unix":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._stop = 0  # of what was received and not yet read
        self._late = 0  # bytes of a late message that are still to come
        self._unsent: deque[memoryview] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def sending(self) -> bool:
        """Whether bytes are left that the socket does not take yet."""
        return bool(self._unsent)

    @property
    def buffer(self) -> bytearray:
        """Where messages are received; `receive` may replace it by a larger one."""
        return self._buffer

    @property
    def is_idle(self) -> bool:
        """Whether no message is half sent or half received."""
        return self._start == self._stop and not self._late and not self._unsent

    def resume(self, received: int, sent: int, parts: tuple[bytes | memoryview, ...]) -> None:
        """Go on after others have used the idle link's socket and buffer for a message.

        received: bytes in the buffer. sent: bytes of the parts that the socket has taken.
        """
        self._start, self._stop = 0, received
        self._keep_unsent(sent, parts)

    def send(self, *parts: bytes | memoryview) -> None:
        """Send as much as the socket takes; `send_more` sends the rest."""
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        self._keep_unsent(sent, parts)

    def _keep_unsent(self, sent: int, parts: tuple[bytes | memoryview, ...]) -> None:
        for part in parts:
            if sent < len(part):
                self._unsent.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def send_more(self) -> bool:
        """Send what is left; whether any of it was sent."""
        try:
            sent = self._socket.send(self._unsent[0])
        except BlockingIOError:
            return False
        rest = self._unsent.popleft()[sent:]
        if rest:
            self._unsent.appendleft(rest)
        return True

    def receive(self, tag: bytes, expected: int) -> Message | None:
        """The message of this tag, if it has arrived whole. Those of other sums are dropped.

        expected: bytes of a partial; its data is valid until the next call.

        Raises:
            ConnectionError, OSError: the peer has closed the link, or it is broken.
            WireError: a message of another size.
        """
        self._reserve(HEADER.size + expected)
        while True:
            message = self._next(tag, expected)
            if message is not None:
                return message
            if self._stop == len(self._buffer):
                self._move_to_front()
            try:
                size = self._socket.recv_into(self._view[self._stop :])
            except BlockingIOError:
                return None
            if size == 0:
                raise ConnectionResetError("the peer has closed it")
            self._stop += size

    def close(self) -> None:
        self._socket.close()

    def _reserve(self, needed: int) -> None:
        """Have room for a message of `needed` bytes: the size of what this end sends."""
        if needed > len(self._buffer):
            old, self._buffer = self._view, bytearray(needed)
            self._view = memoryview(self._buffer)
            self._view[: self._stop - self._start] = old[self._start : self._stop]
            self._start, self._stop = 0, self._stop - self._start
        elif self._start:
            self._move_to_front()

    def _move_to_front(self) -> None:
        left = self._stop - self._start
        self._view[:left] = bytes(self._view[self._start : self._stop])
        self._start, self._stop = 0, left

    def _next(self, tag: bytes, expected: int) -> Message | None:
        """The message of this tag among the bytes received; drops those before it."""
        while True:
            dropped = min(self._late, self._stop - self._start)
            self._start += dropped
            self._late -= dropped
            body = self._start + HEADER.size
            if self._stop < body:
                return None
            num_bytes, kind = start_of(self._buffer, self._start)
            if self._buffer[self._start + TAG_AT : body] != tag:
                self._late = HEADER.size + num_bytes
                continue
            check_size(num_bytes, kind, expected)
            if self._stop < body + num_bytes:
                return None
            self._start = body + num_bytes
            return Message(kind, self._view[body : self._start])
