"""Nothing is left behind: no process and no directory, whichever process ends first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from checkpoints import Tiny
from processes import is_gone, wait_for

from skynet.errors import CheckpointError, PlanError, SkynetError
from skynet.local import processes
from skynet.local.cluster import LocalCluster
from skynet.local.fork_server import ForkServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PARENT = """
import signal, sys
from skynet.local.cluster import LocalCluster
cluster = LocalCluster(sys.argv[1], 1, 2, "float32")
cluster.start()
assert len(cluster.submit_prompt([1, 2], max_tokens=3).get(timeout=60).token_ids) == 3
print(f"export SKYNET_REDIS_URL={cluster.url}", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def own_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork server for each cluster, which ends with the cluster."""
    monkeypatch.setattr(processes, "ForkServer", ForkServer)


@contextmanager
def parent(*command: str) -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """A process that has a cluster: it, all processes below it, and the cluster's directory."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    below: list[int] = []
    try:
        if process.stdout is None:
            raise AssertionError("it has no output")
        line = process.stdout.readline()
        if "unix://" not in line:
            raise AssertionError(f"it said {line!r}")
        directory = Path(line.strip().strip("'").split("unix://")[1]).parent
        below = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        yield process, below, directory
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def leftovers(pids: list[int], directory: Path) -> list[object]:
    left: list[object] = [pid for pid in pids if not is_gone(pid)]
    return [*left, directory] if directory.exists() else left


def test_a_killed_parent_leaves_nothing(tiny: Tiny) -> None:
    # Given a process with a cluster: two shards, orchestrator, fork server, Redis, reaper
    with parent("-c", PARENT, str(tiny.path)) as (process, below, directory):
        assert len(below) == 6
        assert directory.is_dir()
        assert directory.stat().st_mode & 0o077 == 0
        # When it is killed and can do nothing any more
        process.kill()
        process.wait()
        # Then all is gone soon
        wait_for("everything gone", lambda: not leftovers(below, directory), 30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_skynet_up_ends_cleanly(tiny: Tiny, number: signal.Signals) -> None:
    # Given a cluster in the foreground
    command = ("-m", "skynet.cli", "up", "--model", str(tiny.path), "--stages", "1")
    with parent(*command, "--shards", "2", "--dtype", "float32") as (process, below, directory):
        assert len(below) == 6
        # When it gets a signal to end
        process.send_signal(number)
        # Then it does, with a good code, and nothing is left
        assert process.wait(timeout=30) == 0
        assert leftovers(below, directory) == []


def children() -> set[int]:
    return {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}


def test_a_cluster_that_is_stopped_leaves_nothing_and_can_start_again(tiny: Tiny) -> None:
    # Given a cluster on a loopback port
    before = children()
    cluster = LocalCluster(tiny.path, 1, 1, "float32", port=0)
    for _ in range(2):
        # When it is started, used and stopped, twice
        with cluster:
            assert cluster.url.startswith("redis://127.0.0.1:")
            directory = cluster.workers[0].log.parent
            completion = cluster.submit_prompt(tiny.prompts[0], max_tokens=24).get(timeout=60)
            assert completion.token_ids == tiny.tokens[0]
        # Then nothing is left, and it says that it does not run
        assert children() <= before
        assert not directory.exists()
        with pytest.raises(SkynetError, match="not running"):
            cluster.submit_prompt([1])


def test_an_invalid_cluster_is_refused_before_anything_is_started(
    tiny: Tiny, tmp_path: Path
) -> None:
    # Given checkpoints that are missing or truncated, and shapes the model has not
    before = children()
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    (truncated / "config.json").write_bytes((tiny.path / "config.json").read_bytes())
    weights = (tiny.path / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[:-1000])
    # When a cluster is asked for / Then the error names the value and the fault
    with pytest.raises(CheckpointError, match="truncated"):
        LocalCluster(truncated).start()
    with pytest.raises(CheckpointError, match="nowhere"):
        LocalCluster(tmp_path / "nowhere").start()
    with pytest.raises(PlanError, match="7 shards for 6 query heads"):
        LocalCluster(tiny.path, 1, 7).start()
    with pytest.raises(PlanError, match="5 stages for 4 layers"):
        LocalCluster(tiny.path, 5, 1).start()
    assert children() <= before


def test_a_worker_that_cannot_start_is_an_error_with_its_log(tiny: Tiny) -> None:
    # Given workers with a setting that cannot work
    before = children()
    cluster = LocalCluster(tiny.path, 1, 1, environment={"SKYNET_TILE_BYTES": "few"})
    # When they are started
    with pytest.raises(SkynetError) as raised:
        cluster.start()
    # Then the error names the variable, and nothing is left
    assert "SKYNET_TILE_BYTES" in str(raised.value)
    assert children() <= before
