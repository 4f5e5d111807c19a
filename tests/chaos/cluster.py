"""The cluster under attack, and a supervisor that restarts processes, as Docker does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from skynet.local.reaper import Reaper
from skynet.store.connection import connect
from skynet.wire import keys
from tests.chaos.link_relays import LinkRelays
from tests.chaos.server import PersistentServer
from tests.chaos.slot import Slot, words_of
from tests.cluster.proxy import Proxy
from tests.redis_servers import free_port
from tests.sentinels import SentinelServers

ROOT = Path(__file__).parents[2]
LEAVE_S = 90.0  # limit from SIGTERM to exit
STOP_S = 15.0
ENVIRONMENT = {
    "SKYNET_THREADS": "1",
    "SKYNET_LEASE_S": "2",
    "SKYNET_STEP_TIMEOUT_S": "10",
    "SKYNET_EXCHANGE_TIMEOUT_S": "5",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Exits:
    """Exits of processes that were not killed."""

    polite: int = 0  # with code 0 after SIGTERM
    wrong: list[str] = field(default_factory=list)  # late or with another code after SIGTERM
    unasked: list[str] = field(default_factory=list)  # without a signal


class ChaosCluster:
    """A persistent server, workers, orchestrators, gateways, and a proxy for half of them.

    sentinel: a master and a replica behind three Sentinels instead of one server, and no proxy.
    faulty_links: whether there are relays in the way of direct links.
    pinned: shard workers are started with `-Q`; otherwise they take any place, and there can be
        spares and joins.
    """

    def __init__(
        self,
        directory: Path,
        chance: random.Random,
        *,
        stages: int,
        shards: int,
        spares: int,
        orchestrators: int,
        gateways: int = 0,
        pinned: bool,
        sentinel: bool,
        faulty_links: bool,
        environment: Mapping[str, str],
    ) -> None:
        self.directory = directory
        self.sentinels = SentinelServers(directory / "redis") if sentinel else None
        self.server = self.sentinels or PersistentServer(directory)
        self.proxy = Proxy(self.server.url, random.Random(chance.random()))
        (directory / "tmp").mkdir(exist_ok=True)
        self.link_relays = LinkRelays(
            directory / "tmp" / f"skynet-{os.geteuid()}", random.Random(chance.random())
        )
        self._redis_lock = threading.Lock()  # one fault at a time stops Redis
        self.exits = Exits()
        self.pinned = pinned
        self._faulty_links = faulty_links
        self.slots: list[Slot] = []
        self.shape = (stages, shards)
        self._num_spares, self._num_orchestrators = spares, orchestrators
        self._num_gateways = gateways
        self._chance = random.Random(chance.random())  # only of the supervisor
        own = {"TMPDIR": str(directory / "tmp")}  # of the links' sockets
        self._environment = {**os.environ, **ENVIRONMENT, **own, **environment}
        self._reaper = Reaper()
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; workers load once a model is split."""
        self.start_redis()
        if self.sentinels is None:
            self.proxy.start()
        if self._faulty_links:
            self.link_relays.start()
        stages, shards = self.shape
        for stage in range(stages):
            for shard in range(shards):
                address = str(keys.Address(stage, shard))
                self.add_slot(f"worker-{address}", address if self.pinned else "")
        for number in range(self._num_spares):
            self.add_slot(f"spare-{number}", "")
        for number in range(self._num_orchestrators):
            self.add_slot(f"orchestrator-{number}", keys.ORCHESTRATOR_QUEUE)
        for number in range(self._num_gateways):
            self.add_slot(f"gateway-{number}", "", free_port())
        self._supervisor.start()

    def stop(self) -> None:
        """Stop everything."""
        self._end.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for slot in self.slots:
            slot.process.send_signal(signal.SIGCONT)
            slot.process.terminate()
        deadline = time.monotonic() + STOP_S
        for slot in self.slots:
            try:
                slot.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                slot.process.kill()
                slot.process.wait()
        self.server.stop()
        if self.sentinels is None:
            self.proxy.stop()
        if self._faulty_links:
            self.link_relays.stop()
        self._reaper.close()

    def start_redis(self) -> None:
        self.server.start()
        for pid in self.server.pids:
            self._reaper.watch(pid)

    def restart_redis(self, down_s: float) -> None:
        """Stop Redis, and start it with its data after `down_s` seconds."""
        with self._changes_redis():
            self.server.restart(down_s)

    def kill_master(self) -> None:
        """SIGKILL the master, wait for the failover, and start it again as a replica."""
        if self.sentinels is None:
            raise ValueError("the cluster has no Sentinels")
        with self._changes_redis():
            self.sentinels.wait_for_replica()
            old = self.sentinels.kill_master()
            self.sentinels.start_replica(old)

    @contextmanager
    def _changes_redis(self) -> Iterator[None]:
        """One fault that ends and starts servers; the reaper knows the new ones."""
        with self._redis_lock:
            before = set(self.server.pids)
            try:
                yield
            finally:
                after = set(self.server.pids)
                for pid in before - after:
                    self._reaper.forget(pid)
                for pid in after - before:
                    self._reaper.watch(pid)

    def connect(self) -> redis.Redis:
        """A client that bypasses the proxy."""
        return connect(self.server.url)

    # -- processes -----------------------------------------------------------------------------

    @property
    def shard_slots(self) -> list[Slot]:
        workers = [slot for slot in self.slots if not slot.port]
        return [slot for slot in workers if slot.queue != keys.ORCHESTRATOR_QUEUE]

    @property
    def orchestrator_slots(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.queue == keys.ORCHESTRATOR_QUEUE]

    @property
    def gateway_slots(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.port]

    @property
    def gateway_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{slot.port}" for slot in self.gateway_slots]

    def add_slot(self, name: str, queue: str, port: int = 0) -> Slot:
        """Start one more process; every second one connects through the proxy, if there is one."""
        with self._lock:
            proxied = self.sentinels is None and len(self.slots) % 2
            url = self.proxy.url if proxied else self.server.url
            log = self.directory / f"{name}.log"
            process = self._spawn(words_of(queue, port), url, log)
            slot = Slot(name, queue, url, log, process, port)
            self.slots = [*self.slots, slot]
            return slot

    def kill(self, slot: Slot) -> None:
        """SIGKILL."""
        with self._lock:
            slot.killed = True
            slot.process.kill()

    def pause(self, slot: Slot) -> None:
        """SIGSTOP."""
        with self._lock:
            slot.stopped += 1
            slot.process.send_signal(signal.SIGSTOP)

    def resume(self, slot: Slot) -> None:
        """SIGCONT, unless another fault holds it too."""
        with self._lock:
            slot.stopped -= 1
            if not slot.stopped:
                slot.process.send_signal(signal.SIGCONT)

    def ask_to_leave(self, slot: Slot, wanted: bool = True) -> None:
        """SIGTERM; `wanted`: start a new process after it, unless an earlier call said no."""
        with self._lock:
            slot.wanted = slot.wanted and wanted
            if slot.alive() and not slot.left_at:
                slot.left_at = time.monotonic()
                slot.process.terminate()

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Resident bytes and number of open files of each running process."""
        sizes = {}
        for slot in self.slots:
            try:
                process = psutil.Process(slot.process.pid)
                sizes[slot.name] = (process.memory_info().rss, process.num_fds())
            except psutil.Error:  # it has just ended
                continue
        return sizes

    def all_alive(self) -> bool:
        """Does every process run, none of them leaving, held or temporary?"""
        with self._lock:
            return all(
                slot.wanted and slot.alive() and not slot.left_at and not slot.stopped
                for slot in self.slots
            )

    def _spawn(self, words: list[str], url: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environment, "SKYNET_REDIS_URL": url},
                cwd=ROOT,
                start_new_session=True,
            )
        self._reaper.watch(process.pid)
        return process

    # -- the supervisor ------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._end.wait(0.05):
            with self._lock:
                for slot in list(self.slots):
                    self._supervise_slot(slot)

    def _supervise_slot(self, slot: Slot) -> None:
        now = time.monotonic()
        if slot.alive():
            if slot.left_at and now - slot.left_at > LEAVE_S:
                self.exits.wrong.append(f"{slot.name}: still running {LEAVE_S:g} s after SIGTERM")
                self.kill(slot)
        elif not slot.restart_at:
            self._note_exit(slot)
            slot.restart_at = now + self._chance.uniform(0.1, 1.5)
        elif not slot.wanted:
            self.slots = [other for other in self.slots if other is not slot]
        elif now >= slot.restart_at:
            slot.log_start = slot.log.stat().st_size
            slot.process = self._spawn(words_of(slot.queue, slot.port), slot.url, slot.log)
            slot.killed, slot.left_at, slot.restart_at = False, 0.0, 0.0

    def _note_exit(self, slot: Slot) -> None:
        code = slot.process.returncode
        self._reaper.forget(slot.process.pid)
        if slot.killed:
            return
        if code == -signal.SIGTERM and slot.left_at and not slot.was_up():
            return
        if not slot.left_at:
            self.exits.unasked.append(f"{slot.name}: ended by itself with code {code}")
        elif code == 0:
            self.exits.polite += 1
        else:
            self.exits.wrong.append(f"{slot.name}: exit code {code} after SIGTERM")
