"""load: how fast weights are staged and loaded, and what memory that takes beyond what is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from skynet.bench.report import Result
from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.local.cluster import LocalCluster, local_server
from skynet.settings import settings
from skynet.store.members import Members

MODEL = "smollm2"


def load(rounds: int) -> Result:
    """Staging SmolLM2 into an empty server, and loading it into 1 x 2 workers, MB/s."""
    open_checkpoint(MODEL, settings().cache_dir).digest()
    result = Result("load", "SmolLM2-135M, 269 MB in Redis, loaded as bfloat16 by 1x2", "MB/s")
    staged: list[float] = []
    loaded: list[float] = []
    stager_over: list[float] = []
    worker_over: list[float] = []
    worker_base: list[float] = []
    for _ in range(rounds):
        speed, over = _stage_once()
        staged.append(speed)
        stager_over.append(over)
        speed, overs, bases = _load_once()
        loaded.append(speed)
        worker_over += overs
        worker_base += bases
    result.samples = {"staging": staged}
    result.notes = {
        "loading, all workers together": f"{sorted(loaded)[len(loaded) // 2]:.0f} MB/s",
        "stager, peak over its start": f"{max(stager_over):.0f} MB",
        "worker, peak over what it keeps": f"{max(worker_over):.0f} MB",
        "worker, resident over its slice, after 16 x 64 tokens": (
            f"{max(worker_base):.0f} MB (reach: at most 450)"
        ),
    }
    return result


def _stage_once() -> tuple[float, float]:
    with local_server() as (server, _):
        done = subprocess.run(
            [sys.executable, "-m", "skynet.bench.load"],
            env={**os.environ, "SKYNET_REDIS_URL": server.url},
            capture_output=True,
            check=True,
            text=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["mb_per_s"], found["over_mb"]


def _load_once() -> tuple[float, list[float], list[float]]:
    with LocalCluster(MODEL, 1, 2, "bfloat16") as cluster:
        prompts = [[100 + index] * 16 for index in range(16)]
        for generation in cluster.submit_prompts(prompts, max_tokens=64, ignore_eos=True):
            generation.get()
        members = {m.address: m for m in Members(cluster.client.redis, 6).all()}
        shards = [worker for worker in cluster.workers if worker.address.startswith("stage")]
        memory = [_memory_mb(worker.pid) for worker in shards]
        slices = [members[worker.address].weight_bytes / 1e6 for worker in shards]
        slowest = max(members[worker.address].load_s for worker in shards)
    overs = [peak - now for peak, now in memory]
    bases = [now - kept for (_, now), kept in zip(memory, slices, strict=True)]
    return sum(slices) / slowest, overs, bases


def _memory_mb(pid: int) -> tuple[float, float]:
    """(peak, current) resident memory of a process; from /proc, so on Linux only."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    peak, now = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmHWM", "VmRSS"))
    return peak, now


def _stage() -> None:
    """In a process of its own: stage, and say how fast and with what peak of memory."""
    from skynet.staging.split import skysplit

    checkpoint = open_checkpoint(MODEL, settings().cache_dir)
    checkpoint.text_files()
    _, before = _memory_mb(os.getpid())
    size = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal size
        size = total

    started = time.perf_counter()
    skysplit(MODEL, 1, 2, dtype="bfloat16", progress=progress)
    elapsed = time.perf_counter() - started
    peak, _ = _memory_mb(os.getpid())
    print(json.dumps({"mb_per_s": size / 1e6 / elapsed, "over_mb": peak - before}))


if __name__ == "__main__":
    _stage()
