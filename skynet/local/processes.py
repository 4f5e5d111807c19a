"""The Celery worker processes of a local cluster: started, stopped, restarted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skynet.errors import SkynetError
from skynet.local.fork_server import ForkedProcess, ForkServer
from skynet.local.reaper import Reaper
from skynet.wire import keys

STOP_S = 10.0
LEAVE_S = 60.0
# What a shard worker imports until it computes, except for what reads its settings.
PRELOADED = (
    "torch",
    "celery.apps.worker",
    "celery.bin.celery",
    "skynet.chords.app",
    "skynet.chords.backend",
    "skynet.chords.strategy",
    "skynet.store.access",
    "skynet.store.transient",
    "skynet.worker.machine_check",
    "skynet.worker.runtime",
    "skynet.worker.slice",
    "skynet.worker.speed",
)
# On macOS a process forked after its libraries have started threads is killed by the system.
FORKS = sys.platform == "linux"


@dataclass(frozen=True)
class WorkerProcess:
    """One Celery worker of a local cluster.

    address: the place that it is bound to, or its name if it takes any.
    """

    address: str
    pid: int
    log: Path


class WorkerProcesses:
    """Worker processes by name.

    A name is the address that the worker is bound to, begins with "orchestrator", or is any other
    for a worker that takes any place.
    """

    def __init__(self, directory: Path, reaper: Reaper, environment: Mapping[str, str]) -> None:
        """directory: for logs. environment: variables besides this process'."""
        self._directory, self._reaper, self._environment = directory, reaper, environment
        self._forks: ForkServer | None = None
        self.by_name: dict[str, subprocess.Popen[bytes] | ForkedProcess] = {}

    def prepare(self) -> None:
        """Import in the background what workers need, so that they start sooner."""
        if not FORKS:
            return
        log = self._directory / "fork_server.log"
        self._forks = ForkServer(PRELOADED, self._variables(), log)
        self._reaper.watch(self._forks.pid)

    def all(self) -> list[WorkerProcess]:
        """In the order in which they were first started."""
        return [
            WorkerProcess(name, process.pid, self._log_of(name))
            for name, process in self.by_name.items()
        ]

    def pid_of(self, name: str) -> int:
        return self.by_name[name].pid

    def failed(self) -> list[str]:
        """Names of workers whose process has ended."""
        return [name for name, process in self.by_name.items() if process.poll() is not None]

    def check(self) -> None:
        """Raise SkynetError if a process has ended, with the end of its log."""
        for name in self.failed():
            code = self.by_name[name].returncode
            tail = self._log_of(name).read_text(errors="replace")[-1500:].strip()
            raise SkynetError(f"worker {name} ended with code {code}:\n{tail}")

    def start(self, name: str) -> None:
        """Start a worker."""
        process = self._process(_queue_of(name), self._log_of(name))
        self.by_name[name] = process
        self._reaper.watch(process.pid)

    def _process(self, queue: list[str], log: Path) -> subprocess.Popen[bytes] | ForkedProcess:
        arguments = ["-A", "skynet", "worker", *queue]
        # An orchestrator computes nothing: it is started without torch.
        if self._forks is not None and keys.ORCHESTRATOR_QUEUE not in queue:
            return self._forks.start("celery", arguments, self._variables(), log)
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "celery", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._variables(),
                cwd=self._directory,
                start_new_session=True,
            )

    def _variables(self) -> dict[str, str]:
        return {**os.environ, **self._environment}

    def restart(self, name: str) -> None:
        """Start a worker again whose process has ended."""
        process = self.by_name[name]
        if process.poll() is None:
            raise SkynetError(f"{name} (pid {process.pid}) is still running")
        self._reaper.forget(process.pid)
        self.start(name)

    def add(self, name: str | None = None) -> str:
        """Start one more worker, by default for any place; returns its name."""
        name = name or next(n for i in range(10**6) if (n := f"spare{i}") not in self.by_name)
        if name in self.by_name:
            raise SkynetError(f"there is a worker {name} already")
        self.start(name)
        return name

    def remove(self, name: str) -> int:
        """Ask a worker to leave; returns its exit code when it has."""
        process = self.by_name[name]
        process.terminate()
        code = process.wait(timeout=LEAVE_S)
        self._reaper.forget(process.pid)
        del self.by_name[name]
        return code

    def stop(self) -> None:
        """Stop all, orchestrators first: without a leader no worker waits for a successor."""
        leaders = [name for name in self.by_name if name.startswith(keys.ORCHESTRATOR_QUEUE)]
        self._stop(leaders)
        self._stop(name for name in self.by_name if name not in leaders)
        self.by_name.clear()
        if self._forks is not None:
            self._forks.close()
            self._reaper.forget(self._forks.pid)
            self._forks = None

    def _stop(self, names: Iterable[str]) -> None:
        processes = [self.by_name[name] for name in names]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in processes:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._reaper.forget(process.pid)

    def _log_of(self, name: str) -> Path:
        return self._directory / f"{name}.log"


def _queue_of(name: str) -> list[str]:
    """The queue option of a worker of this name; none if it takes any place."""
    if name.startswith(keys.ORCHESTRATOR_QUEUE):
        return ["-Q", keys.ORCHESTRATOR_QUEUE]
    return ["-Q", name] if name.startswith("stage") else []
