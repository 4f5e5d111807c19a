"""A whole cluster on this machine: an embedded server and real Celery worker processes.

    with LocalCluster(model="smollm2", stages=2, shards=2) as cluster:
        cluster.submit_prompt("Hello", max_tokens=8).get(timeout=60)

Nothing is left behind, even when this process is killed (see reaper.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import SkynetError
from skynet.local.processes import WorkerProcess, WorkerProcesses
from skynet.local.readiness import wait_until_ready
from skynet.local.reaper import Reaper
from skynet.local.server import EmbeddedServer, local_server
from skynet.planning.auto_dtype import AUTO, gpu_dtype
from skynet.planning.plan import Plan
from skynet.request.prompts import Prompt
from skynet.settings_sources import CONFIG_VARIABLE, config_file
from skynet.staging.split import SplitOptions, draft_plan, open_source
from skynet.staging.stager import Progress, Stager, stage_checkpoint
from skynet.store.targets import Target, Targets
from skynet.wire import keys
from skynet.wire.keys import Address

READY_S = 600.0


@dataclass(frozen=True)
class ClusterOptions:
    """Options of `LocalCluster` that do not decide its plan."""

    fixed: bool
    elastic: bool
    spares: int
    orchestrators: int
    port: int
    persistent: bool
    threads: int
    environment: Mapping[str, str]

    def worker_names(self, draft: Plan) -> list[str]:
        """Names of the processes to start, orchestrators last."""
        if self.elastic:
            workers = [f"worker{number}" for number, _ in enumerate(draft.addresses())]
        else:
            workers = [str(Address(*address)) for address in draft.addresses()]
        spares = [f"spare{number}" for number in range(self.spares)]
        standby = [f"{keys.ORCHESTRATOR_QUEUE}{n}" for n in range(1, self.orchestrators)]
        return [*workers, *spares, keys.ORCHESTRATOR_QUEUE, *standby]

    def variables(self, url: str) -> dict[str, str]:
        """Environment variables of the workers, besides this process'."""
        config = config_file()  # absolute: workers run in another directory
        return {
            **({CONFIG_VARIABLE: str(config)} if config else {}),
            "SKYNET_REDIS_URL": url,
            "SKYNET_THREADS": str(self.threads),
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }


class LocalCluster:
    """stages x shards shard workers and an orchestrator, on this machine.

    model, stages, shards, dtype, chord_span, num_slots, slot_tokens, kv_dtype, weights,
        keep_embeddings, experts, fixed: as of `skysplit`.
    elastic: workers take any place, and are named worker0, worker1, ...; by default each is bound
        to an address.
    spares: number of additional workers that take any place, named spare0, ...
    orchestrators: one leads, the others stand by; named orchestrator, orchestrator1, ...
    port: a loopback port for the server; by default it listens on a private Unix socket. 0 takes
        any free port.
    persistent: the server writes an append-only file, so that it can be restarted.
    threads: compute threads of each worker; by default the cores divided by the workers.
    environment: more variables for the workers.
    progress: called with ("staging" or "loading", bytes done, bytes in total).

    While the cluster runs, `processes` starts, stops and restarts single workers, and `plan` is
    the plan in force after the start.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2",
        stages: int = 1,
        shards: int = 2,
        dtype: str = AUTO,
        chord_span: str = "auto",
        *,
        num_slots: int = 16,
        slot_tokens: int | None = None,
        kv_dtype: str | None = None,
        weights: str | None = None,
        keep_embeddings: bool = False,
        experts: str = "auto",
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
        self.plan: Plan | None = None
        self._progress: Progress = progress or (lambda what, done, total: None)
        self._plan_options = SplitOptions(
            stages=stages,
            shards=shards,
            dtype=dtype,
            chord_span=chord_span,
            num_slots=num_slots,
            slot_tokens=slot_tokens,
            kv_dtype=kv_dtype,
            weights=weights,
            keep_embeddings=keep_embeddings,
            experts=experts,
        )
        self._options = ClusterOptions(
            fixed=fixed,
            elastic=elastic,
            spares=spares,
            orchestrators=orchestrators,
            port=free_port() if port == 0 else port or 0,
            persistent=persistent,
            threads=threads or max(1, (os.cpu_count() or 1) // max(1, stages * shards)),
            environment=dict(environment or {}),
        )
        self._stack = ExitStack()
        self._server: tuple[EmbeddedServer, Reaper] | None = None
        self._processes: WorkerProcesses | None = None
        self._stager: Stager | None = None
        self._client: Client | None = None

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
            CheckpointError, UnsupportedModel, PlanError: nothing was started.
            SkynetError: names the worker that failed.
        """
        source = open_source(self.model, self._plan_options)
        draft = draft_plan(source, self._plan_options, self._progress)
        options = self._options
        try:
            self._server = self._stack.enter_context(
                local_server(options.port, persistent=options.persistent)
            )
            server, reaper = self._server
            self._processes = WorkerProcesses(
                server.directory, reaper, options.variables(server.url)
            )
            self._processes.prepare()
            client = self.client.redis
            stage_checkpoint(client, source, draft.model, self._progress)
            for name in options.worker_names(draft):
                self._processes.start(name)
            on_gpus = gpu_dtype(self._plan_options.dtype, draft)
            target = Targets(client).ask(Target.of(draft, options.fixed, gpu_dtype=on_gpus))
            self._stager = Stager(self.url, source, lambda: Targets(client).restore(target))
            self._stager.start()
            self.plan = wait_until_ready(client, self._processes, self._progress, ready_timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all processes and remove all files."""
        if self._stager is not None:
            self._stager.stop()
            self._stager = None
        if self._processes is not None:
            self._processes.stop()
            self._processes = None
        if self._client is not None:
            self._client.close()
            self._client = None
        self._server = None
        self._stack.close()

    def restart_server(self) -> None:
        """Restart Redis, as a reboot does; if not persistent it loses everything."""
        server, reaper = self._running()
        reaper.forget(server.pid)
        server.stop()
        server.start()
        reaper.watch(server.pid)

    @property
    def url(self) -> str:
        """The cluster's Redis, for SKYNET_REDIS_URL."""
        return self._running()[0].url

    @property
    def client(self) -> Client:
        """A client of this cluster."""
        if self._client is None:
            self._client = Client(self.url)
        return self._client

    @property
    def processes(self) -> WorkerProcesses:
        """The worker processes of the running cluster."""
        self._running()
        if self._processes is None:
            raise SkynetError("the cluster has no workers yet: wait for start()")
        return self._processes

    @property
    def workers(self) -> list[WorkerProcess]:
        """Address and pid of every worker process, the orchestrator's last."""
        return [] if self._processes is None else self._processes.all()

    def submit_prompt(self, prompt: Prompt, **options: Any) -> Generation:
        """See `skynet.submit_prompt`; for `n` answers call `client.submit_prompt`."""
        return self.client.submit_prompt(prompt, **options)

    def submit_prompts(self, prompts: Iterable[Prompt], **options: Any) -> list[Generation]:
        """See `skynet.submit_prompts`."""
        return self.client.submit_prompts(prompts, **options)

    def _running(self) -> tuple[EmbeddedServer, Reaper]:
        if self._server is None:
            raise SkynetError("the cluster is not running: call start() or use it with `with`")
        return self._server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
