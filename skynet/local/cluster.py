"""A whole cluster on this machine: an embedded server and real Celery worker processes.

    with LocalCluster(model="smollm2", stages=2, shards=2) as cluster:
        cluster.submit_prompt("Hello", max_tokens=8).get(timeout=60)

Nothing is left behind, even when this process is killed (see guardian.py).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import redis

from skynet.client.client import Client, Generation, Prompt
from skynet.errors import SkynetError
from skynet.local.reaper import Reaper
from skynet.local.server import EmbeddedServer
from skynet.planning.plan import Plan
from skynet.settings import settings
from skynet.staging.split import PlanOptions, draft_plan
from skynet.staging.stager import Progress, Stager, stage_checkpoint
from skynet.store.members import FAILED, READY, Member, Members
from skynet.store.plans import Plans, Target
from skynet.transformers_backend.opening import open_model
from skynet.wire import keys
from skynet.wire.keys import Address

READY_S = 600.0
STOP_S = 10.0


@contextmanager
def local_server(
    port: int = 0, *, persistent: bool = False
) -> Iterator[tuple[EmbeddedServer, Reaper]]:
    """An embedded server in a private directory, gone with its files at the end.

    The guardian ends it even if this process is killed, and whatever else it is told to watch.
    """
    directory = Path(tempfile.mkdtemp(prefix="skynet-"))  # mode 0700
    reaper = Reaper()
    reaper.remove_at_end(directory)
    server = EmbeddedServer(directory, port, persistent=persistent)
    try:
        server.start()
        reaper.watch(server.pid)
        yield server, reaper
    finally:
        pid = server.pid
        server.stop()
        reaper.forget(pid)
        reaper.close()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class WorkerProcess:
    """One Celery worker of a local cluster.

    address: the place that it is bound to, or its name if it takes any.
    """

    address: str
    pid: int
    log: Path


class LocalCluster:
    """stages x shards shard workers and an orchestrator, on this machine.

    model, stages, shards, dtype, chord_span, num_slots, slot_tokens, fixed: as of `skysplit`.
    elastic: workers take any place, and are called worker0, worker1, ...; by default each is bound
        to an address.
    spares: so many more that take any place, called spare0, ...
    orchestrators: one leads, the others stand by; called orchestrator, orchestrator1, ...
    port: a loopback port for the server; by default it listens on a private Unix socket. 0 takes
        any free port.
    persistent: the server keeps an append-only file, so that it can be restarted.
    threads: compute threads of each worker; by default the cores divided by the workers.
    environment: more variables for the workers.
    progress: called with ("staging" or "loading", bytes done, bytes in all).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2",
        stages: int = 1,
        shards: int = 2,
        dtype: str | None = None,
        chord_span: str = "auto",
        *,
        num_slots: int = 16,
        slot_tokens: int | None = None,
        fixed: bool = False,
        elastic: bool = False,
        spares: int = 0,
        orchestrators: int = 1,
        port: int | None = None,
        persistent: bool = False,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = os.fspath(model)
        self.port = _free_port() if port == 0 else port or 0
        self.threads = threads or max(1, (os.cpu_count() or 1) // max(1, stages * shards))
        self.environment = dict(environment or {})
        self.progress: Progress = progress or (lambda what, done, total: None)
        self.plan: Plan | None = None
        self.fixed, self.elastic, self.persistent = fixed, elastic, persistent
        self.spares, self.orchestrators = spares, orchestrators
        self._options = PlanOptions(stages, shards, dtype, chord_span, num_slots, slot_tokens)
        self._stager: Stager | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()
        self._reaper: Reaper | None = None
        self._server: EmbeddedServer | None = None
        self._client: Client | None = None

    # -- life ----------------------------------------------------------------------------------

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, ready_timeout_s: float = READY_S) -> None:
        """Start everything and wait until the cluster takes requests.

        Raises:
            SkynetError: what cannot work, before anything is started; or which worker failed.
        """
        checkpoint = open_model(self.model, settings().cache_dir)
        draft = draft_plan(checkpoint, self._options, self.progress)
        try:
            self._server, self._reaper = self._stack.enter_context(
                local_server(self.port, persistent=self.persistent)
            )
            for name in self._names(draft):
                self._start_worker(name)
            client = self.client.redis
            stage_checkpoint(client, checkpoint, draft.model, self.progress)
            target = Plans(client).ask(Target.of(draft, self.fixed))
            self._stager = Stager(self.url, checkpoint, lambda: Plans(client).restore(target))
            self._stager.start()
            self.plan = self._wait_until_ready(client, ready_timeout_s)
        except BaseException:
            self.stop()
            raise

    def _names(self, draft: Plan) -> list[str]:
        if self.elastic:
            names_ = [f"worker{number}" for number, _ in enumerate(draft.addresses())]
        else:
            names_ = [str(Address(*address)) for address in draft.addresses()]
        names_ += [f"spare{number}" for number in range(self.spares)]
        rivals = [f"{keys.ORCHESTRATOR_QUEUE}{n}" for n in range(1, self.orchestrators)]
        return [*names_, keys.ORCHESTRATOR_QUEUE, *rivals]

    def stop(self) -> None:
        """End all processes and remove all files."""
        if self._stager is not None:
            self._stager.stop()
            self._stager = None
        # Orchestrators first: with nobody to lead, workers have nobody to hand over to.
        leaders = [name for name in self._processes if name.startswith(keys.ORCHESTRATOR_QUEUE)]
        self._end(leaders)
        self._end([name for name in self._processes if name not in leaders])
        self._processes.clear()
        if self._client is not None:
            self._client.close()
            self._client = None
        self._server = self._reaper = None
        self._stack.close()

    def _end(self, workers: list[str]) -> None:
        processes = [self._processes[name] for name in workers]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in processes:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._forget(process.pid)

    # -- use -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The cluster's Redis, for SKYNET_REDIS_URL."""
        return self._running_server().url

    @property
    def client(self) -> Client:
        """A client of this cluster."""
        if self._client is None:
            self._client = Client(self.url)
        return self._client

    @property
    def workers(self) -> list[WorkerProcess]:
        """Address and pid of every worker process, the orchestrator's last."""
        return [
            WorkerProcess(address, process.pid, self._log_of(address))
            for address, process in self._processes.items()
        ]

    @property
    def server_pid(self) -> int:
        """Pid of the embedded server."""
        return self._running_server().pid

    def submit_prompt(self, prompt: Prompt, **options: Any) -> Generation:
        """See `skynet.submit_prompt`; for `n` answers call `client.submit_prompt`."""
        return self.client.submit_prompt(prompt, **options)

    def submit_prompts(self, prompts: Iterable[Prompt], **options: Any) -> list[Generation]:
        """See `skynet.submit_prompts`."""
        return self.client.submit_prompts(prompts, **options)

    def failed_workers(self) -> list[str]:
        """Addresses of workers whose process has ended."""
        return [a for a, process in self._processes.items() if process.poll() is not None]

    def restart_worker(self, address: str) -> None:
        """Start a worker in the place of one that has ended."""
        process = self._processes[address]
        if process.poll() is None:
            raise SkynetError(f"{address} (pid {process.pid}) is still running")
        self._forget(process.pid)
        self._start_worker(address)

    def add_worker(self, address: str | None = None) -> str:
        """Start one more worker, for any place by default; returns its name."""
        taken = set(self._processes)
        name = address or next(n for i in range(10**6) if (n := f"spare{i}") not in taken)
        if name in taken:
            raise SkynetError(f"there is a worker {name} already")
        self._start_worker(name)
        return name

    def remove_worker(self, name: str) -> int:
        """Ask a worker to leave; returns its exit code when it has."""
        process = self._processes[name]
        process.terminate()
        code = process.wait(timeout=60)
        self._forget(process.pid)
        del self._processes[name]
        return code

    def pid_of(self, name: str) -> int:
        """The process of a worker."""
        return self._processes[name].pid

    def restart_server(self) -> None:
        """Restart Redis, as a machine that reboots does; without a file it forgets everything."""
        server = self._running_server()
        self._forget(server.pid)
        server.stop()
        server.start()
        if self._reaper is not None:
            self._reaper.watch(server.pid)

    # -- processes -----------------------------------------------------------------------------

    def _start_worker(self, address: str) -> None:
        environment = {
            **os.environ,
            "SKYNET_REDIS_URL": self.url,
            "SKYNET_THREADS": str(self.threads),
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }
        place = _place_of(address)
        queue = ["-Q", place] if place else []
        with self._log_of(address).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "skynet", "worker", *queue],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._running_server().directory,
                start_new_session=True,
            )
        self._processes[address] = process
        if self._reaper is not None:
            self._reaper.watch(process.pid)

    def _wait_until_ready(self, client: redis.Redis, timeout_s: float) -> Plan:
        members = Members(client, settings().lease_s)
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_processes()
            found = members.all()
            for member in found:
                if member.state == FAILED:
                    raise SkynetError(f"{member.address} could not load: {member.problem}")
            self._report_loading([member for member in found if member.weight_bytes])
            engine = cast("bytes | None", client.get(keys.ENGINE_KEY))
            state = json.loads(engine)["state"] if engine else "waiting for an orchestrator"
            plan = Plans(client).current()
            everybody = len({member.pid for member in found}) == len(self._processes)
            if state == "ready" and plan is not None and everybody:
                return plan
            if time.monotonic() > deadline:
                raise SkynetError(f"not ready after {timeout_s:g} s: {state}")
            time.sleep(0.05)

    def _report_loading(self, shards: list[Member]) -> None:
        total = sum(member.weight_bytes for member in shards)
        if total:
            done = sum(m.weight_bytes if m.state == READY else m.loaded_bytes for m in shards)
            self.progress("loading", min(done, total), total)

    def _check_processes(self) -> None:
        for address in self.failed_workers():
            code = self._processes[address].returncode
            tail = self._log_of(address).read_text(errors="replace")[-1500:].strip()
            raise SkynetError(f"worker {address} ended with code {code}:\n{tail}")

    def _forget(self, pid: int | None) -> None:
        if self._reaper is not None and pid is not None:
            self._reaper.forget(pid)

    def _log_of(self, address: str) -> Path:
        return self._running_server().directory / f"{address}.log"

    def _running_server(self) -> EmbeddedServer:
        if self._server is None:
            raise SkynetError("the cluster is not running: call start() or use it with `with`")
        return self._server


def _place_of(name: str) -> str:
    """What -Q gets for a worker of this name; "" if it takes any place."""
    if name.startswith(keys.ORCHESTRATOR_QUEUE):
        return keys.ORCHESTRATOR_QUEUE
    return name if name.startswith("stage") else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
