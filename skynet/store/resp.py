"""A Redis connection for the hot path: hand-written commands, replies read with hiredis.

redis-py's pool, retries and instrumentation cost as much as a whole exchange. This uses only its
connection (address, TLS, authentication): one socket, one thread, several commands a write.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import hiredis
import redis

from skynet.redis_url import RedisURL
from skynet.store.access import refusal
from skynet.store.away import away
from skynet.store.connection import connection_pool

READ_BYTES = 256 * 1024
IDLE_S = 1.0


class Script:
    """A Lua script and its SHA-1."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()


class RespConnection:
    """One connection, opened on first use and again after an error.

    timeout_s: maximum wait for the next bytes of a reply.
    spin_s: time to poll for them before sleeping. A sleeping core takes time to wake, most of all
        in a virtual machine; the yield between polls lets the server run.
    """

    def __init__(self, url: str | RedisURL, timeout_s: float, spin_s: float = 0.0) -> None:
        self.timeout_s = timeout_s
        self.spin_s = spin_s
        self._pool = connection_pool(url, timeout_s=timeout_s)
        self._used = 0.0
        self._connection: Any = None
        self._socket: Any = None
        self._reader = hiredis.Reader()
        self._buffer = bytearray(READ_BYTES)

    def call(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands in one write and read a reply to each.

        Raises:
            redis.ConnectionError, redis.TimeoutError: the connection is closed, or Redis cannot
                serve now; the commands may have run.
            redis.ResponseError: Redis refused one of them.
            redis.InvalidResponse: the server does not speak Redis's protocol.
        """
        self.send(b"".join(commands))
        return self.receive(len(commands))

    def send(self, commands: bytes) -> None:
        """Send commands whose replies `receive` will read. Raises as `call`."""
        try:
            self._close_if_stale()
            self._open().sendall(commands)
        except BaseException as error:
            self._close_and_raise(error)

    def receive(self, count: int) -> list[Any]:
        """Read the replies to this many commands that were sent. Raises as `call`."""
        try:
            return self._read(count)
        except BaseException as error:
            self._close_and_raise(error)

    def _close_and_raise(self, error: BaseException) -> NoReturn:
        """Close the connection: late replies must not be read by the next call."""
        self.close()
        if isinstance(error, hiredis.HiredisError):
            raise redis.InvalidResponse(f"not a reply of Redis: {error}") from error
        if isinstance(error, BlockingIOError | TimeoutError):
            raise redis.TimeoutError(f"no reply from Redis within {self.timeout_s:g} s") from error
        if isinstance(error, OSError):
            raise redis.ConnectionError(str(error)) from error
        raise error

    def call_again(self, commands: Sequence[bytes]) -> list[Any]:
        """As `call`, repeated once if the connection breaks: for commands that may run twice."""
        try:
            return self.call(commands)
        except redis.ConnectionError:
            return self.call(commands)

    def run(self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Run a Lua script that may run twice, by its SHA-1 if Redis has it cached.

        Raises as `call`.
        """
        words = (b"%d" % len(keys), *keys, *arguments)
        try:
            return self.call_again([command(b"EVALSHA", script.sha, *words)])[0]
        except redis.ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return self.call_again([command(b"EVAL", script.text.encode(), *words)])[0]

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = self._socket = None

    def _close_if_stale(self) -> None:
        """After a pause, close the connection if Redis has closed its end."""
        now = time.monotonic()
        idle_s, self._used = now - self._used, now
        if self._socket is None or idle_s < IDLE_S:
            return
        if select.select([self._socket], [], [], 0)[0]:  # no reply is due: an end
            self.close()

    def _open(self) -> Any:
        if self._socket is None:
            self._reader = hiredis.Reader()
            self._connection = self._pool.make_connection()
            self._connection.connect()
            self._socket = self._connection._sock
            # Python's timeouts poll before every read and write; the kernel's cost nothing.
            self._socket.settimeout(None)
            seconds = int(self.timeout_s)
            limit = struct.pack("ll", seconds, int((self.timeout_s - seconds) * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, limit)
        return self._socket

    def _read(self, count: int) -> list[Any]:
        replies: list[Any] = []
        while len(replies) < count:
            size = self._receive()
            if size == 0:
                raise ConnectionResetError("Redis closed the connection")
            self._reader.feed(self._buffer, 0, size)
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise self._error(str(reply))
                replies.append(reply)
        return replies

    def _error(self, reply: str) -> redis.RedisError:
        user = self._pool.connection_kwargs.get("username")
        return away(reply) or refusal(reply, "", user) or redis.ResponseError(reply)

    def _receive(self) -> int:
        if self.spin_s and not isinstance(self._socket, ssl.SSLSocket):
            until = time.perf_counter() + self.spin_s
            while time.perf_counter() < until:
                try:
                    return int(self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT))
                except BlockingIOError:
                    os.sched_yield()
        return int(self._socket.recv_into(self._buffer))


def command(*words: bytes) -> bytes:
    """One command in RESP, Redis's protocol."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(w), w) for w in words])
