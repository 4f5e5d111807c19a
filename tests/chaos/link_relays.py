"""Relays in the way of direct links: they cut, delay and hold what shards send each other.

A worker's Unix socket is replaced by that of a relay, which forwards to it. Workers do not notice.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

from tests.cluster.proxy import Proxy

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
    """Relays for all workers that have their socket in `directory`, whenever they start."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self._chance = chance
        self._relays: dict[Path, Proxy] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="link-relays", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        for relay in self._relays.values():
            relay.stop()

    def in_use(self) -> list[Proxy]:
        """The relays of workers that have links. Shards of higher numbers dial lower ones."""
        return [relay for relay in self._relays.values() if relay.num_connections()]

    def _follow(self) -> None:
        while not self._end.wait(LOOK_S):
            for path in self.directory.glob("*.sock"):
                if path not in self._relays:
                    relay = relay_unix(path, random.Random(self._chance.random()))
                    self._relays = {**self._relays, path: relay}
