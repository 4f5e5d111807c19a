"""The supervisor of the chaos suite: a worker that joined for a while stays away afterwards."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import ChaosCluster
from tests.chaos.slot import Slot


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ChaosCluster]:
    """One that is not started."""
    cluster = ChaosCluster(
        tmp_path,
        random.Random(1),
        stages=1,
        shards=1,
        spares=0,
        sentinel=False,
        orchestrators=1,
        pinned=False,
        faulty_links=False,
        environment={},
    )
    cluster.proxy.start()
    yield cluster
    cluster.proxy.stop()
    cluster._reaper.close()


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    """A process that waits."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield Slot("extra", "", "", tmp_path / "log", process)
    process.kill()
    process.communicate()


def test_a_second_request_to_leave_does_not_bring_a_worker_back(
    cluster: ChaosCluster, slot: Slot
) -> None:
    # Given a worker of the fault `join`, which is over
    cluster.slots = [slot]
    cluster.ask_to_leave(slot, wanted=False)
    # When the fault `leave` meets it on its way out
    cluster.ask_to_leave(slot)
    slot.process.wait(timeout=30)
    slot.log.touch()
    # Then the supervisor removes it, and starts no other process
    for _ in range(3):
        cluster._supervise_slot(slot)
    assert cluster.slots == []
