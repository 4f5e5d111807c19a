"""load: speed of staging and loading weights, and peak memory beyond the loaded weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from skynet.bench.report import Result
from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.local.cluster import LocalCluster
from skynet.local.server import local_server
from skynet.settings import settings
from skynet.store.members import Members

MODEL = "smollm2"


def load(rounds: int) -> Result:
    """Stage SmolLM2 in an empty server, and load it into 1 x 2 workers, MB/s."""
    open_checkpoint(MODEL, settings().cache_dir).digest()
    result = Result("load", "SmolLM2-135M, 269 MB in Redis, loaded as bfloat16 by 1x2", "MB/s")
    staged: list[float] = []
    loaded: list[float] = []
    stager_peaks: list[float] = []
    worker_peaks: list[float] = []
    worker_bases: list[float] = []
    for _ in range(rounds):
        speed, peak = _stage_once()
        staged.append(speed)
        stager_peaks.append(peak)
        speed, peaks, bases = _load_once()
        loaded.append(speed)
        worker_peaks += peaks
        worker_bases += bases
    result.samples = {"staging": staged}
    result.notes = {
        "loading, all workers together": f"{sorted(loaded)[len(loaded) // 2]:.0f} MB/s",
        "stager, peak above its start": f"{max(stager_peaks):.0f} MB",
        "worker, peak above its resident memory": f"{max(worker_peaks):.0f} MB",
        "worker, resident memory above its slice, after 16 x 64 tokens": (
            f"{max(worker_bases):.0f} MB (target: <= 450)"
        ),
    }
    return result


def reload(rounds: int) -> Result:
    """Load SmolLM2's slices from this machine's cache and from Redis, seconds of the slower."""
    open_checkpoint(MODEL, settings().cache_dir).digest()
    samples: dict[str, list[float]] = {"the cache on disk": [], "Redis": []}
    with tempfile.TemporaryDirectory() as directory:
        cached = {"SKYNET_CACHE_DIR": directory, "SKYNET_TILE_CACHE_GIB": "8"}
        _load_s(cached)  # fills the cache
        for _ in range(rounds):
            samples["the cache on disk"].append(_load_s(cached))
            samples["Redis"].append(_load_s({"SKYNET_TILE_CACHE_GIB": "0"}))
    what = "SmolLM2-135M's slices, 1x2, by two workers at once"
    return Result("reload", what, "s", samples, ("<=", 1 / 3))


def _load_s(environment: dict[str, str]) -> float:
    """Seconds of the slower of two workers to load its slice."""
    with LocalCluster(MODEL, 1, 2, environment=environment) as cluster:
        members = Members(cluster.client.redis, 6).all()
        return max(member.load_s for member in members)


def _stage_once() -> tuple[float, float]:
    """(MB/s, peak memory above the start in MB) of a stager process."""
    with local_server() as (server, _):
        done = subprocess.run(
            [sys.executable, "-m", "skynet.bench.load"],
            env={**os.environ, "SKYNET_REDIS_URL": server.url},
            capture_output=True,
            check=True,
            text=True,
        )
    measured = json.loads(done.stdout.splitlines()[-1])
    return measured["mb_per_s"], measured["peak_mb"]


def _load_once() -> tuple[float, list[float], list[float]]:
    """(MB/s, each worker's peak above resident memory, resident memory above its slice)."""
    with LocalCluster(MODEL, 1, 2, "bfloat16") as cluster:
        prompts = [[100 + index] * 16 for index in range(16)]
        for generation in cluster.submit_prompts(prompts, max_tokens=64, ignore_eos=True):
            generation.get()
        members = {m.address: m for m in Members(cluster.client.redis, 6).all()}
        shards = [worker for worker in cluster.workers if worker.address.startswith("stage")]
        memory = [_memory_mb(worker.pid) for worker in shards]
        slices = [members[worker.address].weight_bytes / 1e6 for worker in shards]
        slowest = max(members[worker.address].load_s for worker in shards)
    peaks = [peak - resident for peak, resident in memory]
    bases = [resident - size for (_, resident), size in zip(memory, slices, strict=True)]
    return sum(slices) / slowest, peaks, bases


def _memory_mb(pid: int) -> tuple[float, float]:
    """(peak, current) resident memory of a process, from /proc: Linux only."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    peak, resident = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmHWM", "VmRSS"))
    return peak, resident


def _stage() -> None:
    """The stager process: stage, print speed and peak memory."""
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
    print(json.dumps({"mb_per_s": size / 1e6 / elapsed, "peak_mb": peak - before}))


if __name__ == "__main__":
    _stage()
