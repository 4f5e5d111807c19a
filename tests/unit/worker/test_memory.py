"""Free memory: of the host, or of a container that may use less."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from skynet.worker import memory

MIB = 2**20


def limited(directory: Path, limit: str) -> Path:
    """A control group that uses 300 MiB, 100 of them for a cache of files."""
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{300 * MIB}\n")
    (directory / "memory.stat").write_text(f"anon {200 * MIB}\ninactive_file {100 * MIB}\n")
    return directory


def test_a_container_has_what_is_below_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_own_cgroup", lambda: limited(tmp_path, str(512 * MIB)))
    assert memory.free_memory() == 312 * MIB


@pytest.mark.parametrize("limit", ["max", str(2**60)])
def test_without_a_smaller_limit_it_is_the_hosts(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_own_cgroup", lambda: limited(tmp_path, limit))
    total = psutil.virtual_memory().total
    assert total / 50 < memory.free_memory() <= total


def test_a_host_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert memory._free_in_cgroup(tmp_path / "none") == sys.maxsize
    assert memory._own_cgroup().is_relative_to(memory.CGROUPS)
