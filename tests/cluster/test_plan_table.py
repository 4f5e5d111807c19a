"""What `skynet run` and `skynet up` show of the plan."""

from __future__ import annotations

import re

import pytest

from skynet.cli.local import show_plan
from skynet.local.cluster import LocalCluster

pytestmark = pytest.mark.cluster


def test_the_plan_shows_the_slice_of_every_worker(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given 4 layers and 6 heads in 2 stages of 3 shards
    show_plan(cluster)
    # When / Then nothing is on stdout, where the answer goes
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert "2 stages x 3 shards, each shard a Celery worker" in lines[0]
    assert lines[1].split() == ["worker", "layers", "heads", "weights"]
    rows = [re.split(r" {2,}", line.strip()) for line in lines[2:8]]
    assert [row[:3] for row in rows] == [
        [f"stage{stage}.shard{shard}", layers, heads]
        for stage, layers in enumerate(("[0, 2)", "[2, 4)"))
        for shard, heads in enumerate(("[0, 2)", "[2, 4)", "[4, 6)"))
    ]
    assert all(float(row[3].removesuffix(" MB")) > 0 for row in rows)
