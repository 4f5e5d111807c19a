"""Relays in the way of direct links: they cut, delay and hold what shards send each other.

A worker's Unix socket is replaced by that of a relay, which forwards to it. Workers do not notice.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

from tests.cluster.proxy import Direction, Proxy

LOOK_S = 0.02


def relay_unix(path: Path, chance: random.Random) -> Proxy:
    """A relay that accepts at `path` in the place of the socket that is there; it has started."""
    behind, new = path.with_suffix(".behind"), path.with_suffix(".new")
    os.link(path, behind)
    relay = Proxy(f"unix://{behind}", chance, listen=new)
    relay.start()
    new.rename(path)  # at no time is there none
    return relay


class LinkRelays:
    """Relays for every second worker that has its socket in `directory`, whenever it starts."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self._chance = chance
        self._relays: list[Proxy] = []
        self._seen: set[Path] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="link-relays", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        for relay in self._relays:
            relay.stop()

    def _follow(self) -> None:
        while not self._end.wait(LOOK_S):
            for path in sorted(self.directory.glob("*.sock")):
                if path in self._seen:
                    continue
                self._seen.add(path)
                if len(self._seen) % 2:
                    relay = relay_unix(path, random.Random(self._chance.random()))
                    self._relays = [*self._relays, relay]

    # -- faults --------------------------------------------------------------------------------

    def cut(self) -> int:
        """Close all links of these workers; returns their number."""
        return sum(relay.cut() for relay in self._relays)

    def cut_in_message(self, direction: Direction) -> int:
        """Close each of these workers' links in its next message; returns the workers' number."""
        linked = [relay for relay in self._relays if relay.num_connections()]
        for relay in linked:
            relay.cut_in_message(direction)
        return len(linked)

    def delay(self, seconds: float) -> None:
        """Delay each chunk from now on; 0 for no delay."""
        for relay in self._relays:
            relay.delay(seconds)

    def hold(self, *directions: Direction) -> int:
        """Forward nothing, and tell nobody, until `release`; returns the number of links."""
        relays = self._relays
        for relay in relays:
            relay.hold(*directions)
        return sum(relay.num_connections() for relay in relays)

    def release(self) -> None:
        for relay in self._relays:
            relay.release()
