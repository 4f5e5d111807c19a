"""Snapshots of a cluster as a stream: read once a second, however many pages are open."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from skynet.gateway.cluster.json_patch import diff

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
LINGER_S = 5.0  # that reading goes on after the last page was closed
KEPT_PATCHES = 60  # that a page which connects again gets; after more it gets a snapshot


@dataclass(frozen=True)
class Change:
    """An event of the stream. kind: `snapshot` or `patch`; id: for `Last-Event-ID`."""

    kind: str
    id: str
    data: str  # JSON


class Feed:
    """The snapshots of one cluster, for one event loop.

    read: makes a snapshot; it may block, and runs in a thread.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], interval_s: float = INTERVAL_S) -> None:
        self._read = read
        self._interval_s = interval_s
        self._run = secrets.token_hex(4)  # tells the versions of this process from others'
        self._version = 0  # 0: nothing was read yet
        self._snapshot: dict[str, Any] = {}
        self._patches: deque[tuple[int, str]] = deque(maxlen=KEPT_PATCHES)
        self._changed = asyncio.Event()  # replaced at each change
        self._wake = asyncio.Event()
        self._readers = 0
        self._used = 0.0  # when the last reader left
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def current(self) -> dict[str, Any]:
        """A snapshot that is hardly older than the interval."""
        async with aclosing(self.follow()) as changes:
            async for _ in changes:
                break
        return self._snapshot

    async def follow(self, last_id: str = "") -> AsyncGenerator[Change]:
        """A snapshot, then patches; patches alone for a reader who has version `last_id`."""
        self._readers += 1
        self._start()
        version = self._version_of(last_id)
        try:
            while True:
                changed, newest = self._changed, self._version
                for change in self._since(version):
                    yield change  # meanwhile there may be newer ones
                version = newest
                if self._closed:
                    return
                await changed.wait()
        finally:
            self._readers -= 1
            self._used = time.monotonic()

    def refresh(self) -> None:
        """Read again at once: something was changed."""
        self._wake.set()

    def close(self) -> None:
        """End all streams and stop reading."""
        self._closed = True
        self._changed.set()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._version, self._snapshot = 0, {}  # what was read before is old
            self._run = secrets.token_hex(4)
            self._patches.clear()
            self._task = asyncio.create_task(self._poll(), name="cluster-feed")

    async def _poll(self) -> None:
        while self._readers or time.monotonic() - self._used < LINGER_S:
            self._wake.clear()
            try:
                snapshot = await asyncio.to_thread(self._read)
            except Exception:  # the next one may succeed; pages show how old theirs is
                logger.exception("the state of a cluster could not be read")
            else:
                self._publish(snapshot)
            try:
                await asyncio.wait_for(self._wake.wait(), self._interval_s)
            except TimeoutError:
                pass

    def _publish(self, snapshot: dict[str, Any]) -> None:
        patch = list(diff(self._snapshot, snapshot))
        if self._version and not patch:
            return
        self._version += 1
        self._snapshot = snapshot
        self._patches.append((self._version, _json(patch)))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _since(self, version: int) -> list[Change]:
        """The patches after `version`, or the whole snapshot if `version` is 0 or too old."""
        if version == self._version:
            return []
        kept = [(number, patch) for number, patch in self._patches if number > version]
        if version and len(kept) == self._version - version:
            return [Change("patch", self._id(number), patch) for number, patch in kept]
        return [Change("snapshot", self._id(self._version), _json(self._snapshot))]

    def _id(self, version: int) -> str:
        return f"{self._run}-{version}"

    def _version_of(self, last_id: str) -> int:
        run, _, number = last_id.partition("-")
        known = run == self._run and number.isascii() and number.isdigit() and len(number) < 10
        return int(number) if known and int(number) <= self._version else 0


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
