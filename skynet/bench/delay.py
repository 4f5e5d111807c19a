"""A TCP relay that delays bytes, as a network between machines does.

    with Delay(port) as delay:
        delay.set(0.001)  # a round trip through the Redis at `delay.url` takes 2 ms longer

The relay is a process of one thread. Whatever arrives is passed on after the delay, however much
is on its way already: it adds latency and takes no bandwidth.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

from skynet.errors import SkynetError

CHUNK = 256 * 1024
SEND_S = 10.0  # for a receiver to take a chunk
SET_TIMER_SLACK = 29  # of prctl(2): Linux rounds waits to 50 microseconds by default


class Relay:
    """Forwards connections to `listener` to 127.0.0.1:`port`, each byte `delay_s` later."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self._listener, self._port, self._delay_s = listener, port, 0.0
        self._peers: dict[socket.socket, socket.socket] = {}
        self._queue: deque[tuple[float, socket.socket, bytes]] = deque()  # due, receiver, bytes

    def run(self, control: int) -> None:
        """Forward until the file descriptor `control` is closed.

        Each line from it is a new delay in seconds.
        """
        while True:
            wait_s = max(0.0, self._queue[0][0] - time.perf_counter()) if self._queue else None
            sources: list[Any] = [control, self._listener, *self._peers]
            ready, _, _ = select.select(sources, [], [], wait_s)
            for source in ready:
                if source is control:
                    lines = os.read(control, CHUNK).split()
                    if not lines:
                        return
                    self._delay_s = float(lines[-1])
                elif source is self._listener:
                    self._accept()
                elif source in self._peers:
                    self._read(source)
            while self._queue and self._queue[0][0] <= time.perf_counter():
                _, receiver, content = self._queue.popleft()
                self._write(receiver, content)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._port), timeout=SEND_S)
        except OSError:  # the server is down: the client sees its connection end
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            one.settimeout(SEND_S)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[one] = other

    def _read(self, source: socket.socket) -> None:
        try:
            content = source.recv(CHUNK)
        except OSError:
            content = b""
        self._queue.append((time.perf_counter() + self._delay_s, self._peers[source], content))
        if not content:
            del self._peers[source]  # read no more; its peer is closed when that is due

    def _write(self, receiver: socket.socket, content: bytes) -> None:
        with suppress(OSError):  # it is closed, and so its peer will be
            if content:
                receiver.sendall(content)
            else:
                receiver.shutdown(socket.SHUT_WR)
        if not content and receiver not in self._peers:
            receiver.close()


class Delay:
    """A relay process in front of the Redis at 127.0.0.1:`port`."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def set(self, seconds: float) -> None:
        """Delay what arrives from now on, in each direction."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()

    def __enter__(self) -> Delay:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line.strip().isdigit():
            raise SkynetError("the relay process did not start")
        self.url = f"redis://127.0.0.1:{line.strip()}/0"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, which ends it


def main(port: int) -> None:
    """Print the port of a relay, and run it until stdin is closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_TIMER_SLACK, 1000, 0, 0, 0)  # nanoseconds
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    Relay(listener, port).run(sys.stdin.fileno())


if __name__ == "__main__":
    main(int(sys.argv[1]))
