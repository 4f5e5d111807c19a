"""A proxy in front of Redis, or of a direct link, that simulates network faults: delays, silence,
resets.

Runs in a separate thread; its methods are for any other thread. Random choices are made by the
given `random.Random`.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
CHUNK = 64 * 1024
ANSWER_S = 10.0  # limit for a call to the proxy's thread


class Direction(Enum):
    """Direction of bytes."""

    UP = "to the server"
    DOWN = "to the client"


BOTH = (Direction.UP, Direction.DOWN)


@dataclass(eq=False)
class _Link:
    """A client's connection, and its connection to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def abort(self) -> None:
        """Reset both connections."""
        for writer in (self.client, self.server):
            plug = writer.get_extra_info("socket")
            if plug is not None and plug.family != socket.AF_UNIX:
                with suppress(OSError):  # it is closed already
                    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Forwards 127.0.0.1:`port` to the server at `target`, a `unix://` or `redis://` URL.

    listen: path of a Unix socket to listen on instead.
    """

    def __init__(
        self, target: str, chance: random.Random | None = None, listen: Path | None = None
    ) -> None:
        self.target = target
        self.listen = listen
        self.port = 0  # any free one, from `start` on
        self._chance = chance or random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delay_s = dict.fromkeys(Direction, 0.0)
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._cutting: set[Direction] = set()
        self.num_cut_in_message = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to listen."""
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        """Reset all connections and stop listening."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- faults --------------------------------------------------------------------------------

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Delay each chunk from now on; 0 for no delay. Both directions by default."""
        for direction in directions or BOTH:
            self._delay_s[direction] = seconds

    def hold(self, *directions: Direction) -> None:
        """Forward nothing until `release`; connections stay open, and new ones are accepted.

        Like an unplugged cable: bytes and closed connections are forwarded later, none is lost.
        """
        self._call(lambda: self._close_ways(directions or BOTH))

    def release(self, *directions: Direction) -> None:
        """End a `hold`."""
        self._call(lambda: self._open_ways(directions or BOTH))

    def cut(self) -> int:
        """Reset all connections; returns their number."""
        return self._call(self._abort_all)

    def cut_in_message(self, *directions: Direction) -> None:
        """Reset a connection after a random part of the next chunk, once per direction."""
        self._call(lambda: self._cutting.update(directions or BOTH))

    def num_connections(self) -> int:
        return self._call(lambda: len(self._links))

    # -- in the proxy's thread -----------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        for event in self._open.values():
            event.set()
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)

    def _call(self, work: Callable[[], T]) -> T:
        async def do() -> T:
            return work()

        return self._do(do())

    def _close_ways(self, directions: Iterable[Direction]) -> None:
        for direction in directions:
            self._open[direction].clear()

    def _open_ways(self, directions: Iterable[Direction]) -> None:
        for direction in directions:
            self._open[direction].set()

    async def _listen(self) -> None:
        if self.listen is not None:
            self._server = await asyncio.start_unix_server(self._accept, self.listen)
            return
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._abort_all()
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _abort_all(self) -> int:
        links, self._links = self._links, set()
        for link in links:
            link.abort()
        return len(links)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await self._connect()
        except OSError:  # the server is down: the client sees its connection end
            writer.transport.abort()
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        pumps = [
            asyncio.ensure_future(self._pump(reader, server_writer, Direction.UP)),
            asyncio.ensure_future(self._pump(server_reader, writer, Direction.DOWN)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._links.discard(link)
            link.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = urlsplit(self.target)
        if where.scheme == "unix":
            return await asyncio.open_unix_connection(where.path)
        return await asyncio.open_connection(where.hostname, where.port)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        """Forward until one side closes, or this connection is chosen to be cut."""
        try:
            while chunk := await reader.read(CHUNK):
                await self._open[direction].wait()
                if self._delay_s[direction]:
                    await asyncio.sleep(self._delay_s[direction])
                if direction in self._cutting:
                    await self._cut_here(writer, chunk, direction)
                    return
                writer.write(chunk)
                await writer.drain()
            await self._open[direction].wait()  # a close is held back too
        except OSError:
            return

    async def _cut_here(
        self, writer: asyncio.StreamWriter, chunk: bytes, direction: Direction
    ) -> None:
        self._cutting.discard(direction)
        self.num_cut_in_message += 1
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits for the last byte
        writer.write(chunk[: self._chance.randrange(len(chunk))])
        await writer.drain()
