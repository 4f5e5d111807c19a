"""Half a minute of chaos: what `make chaos` does for long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = (
    "kill_shard,kill_orchestrator,pause,leave,cut_clients,cut_in_message,restart_redis,"
    "cut_links,cut_link_in_message,delay_links,half_open_links"
)


@pytest.mark.cluster
@pytest.mark.alone
@pytest.mark.timeout(240)
def test_nothing_is_wrong_or_lost_after_half_a_minute_of_faults() -> None:
    # Given a cluster of one stage, two shards and a spare, under load
    shape = "--stages 1 --shards 2 --spares 1 --orchestrators 2 --gateways 0"
    load = "--clients 4 --max-tokens 60"
    words = f"--seconds 30 --seed 20 {shape} {load} --gap 4 --faults {FAULTS}".split()
    # When it is attacked
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    try:
        output, _ = process.communicate(timeout=230)
    finally:
        process.kill()  # its reaper ends what it started
        process.communicate()  # else the next test fails for the open pipe
    # Then every token was right, each request ended once, and nothing has leaked
    assert process.returncode == 0, output[-20_000:]
    assert "nothing wrong, nothing lost" in output
