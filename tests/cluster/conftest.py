"""Clusters that several tests share: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Tiny, make_tiny
from processes import is_gone

from skynet.local import processes
from skynet.local.cluster import LocalCluster
from skynet.local.fork_server import ForkServer

SHARED = "shared cluster"
GROUP = pytest.StashKey[str]()
running_clusters: list[LocalCluster] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file run in one process; those that share `cluster` in one, and first."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    sharing = {item.path for item in ours if _takes_cluster(item)}
    for item in ours:
        item.stash[GROUP] = SHARED if item.path in sharing else item.path.name
        item.add_marker(pytest.mark.xdist_group(item.stash[GROUP]))
    others = [item for item in items if item not in set(ours)]
    items[:] = others + sorted(ours, key=lambda item: item.stash[GROUP] != SHARED)


def _takes_cluster(item: pytest.Item) -> bool:
    names: list[str] = getattr(item, "fixturenames", [])
    has_its_own = hasattr(getattr(item, "module", None), "cluster")
    return "cluster" in names and not has_its_own


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Stop the shared cluster after the last test that takes it: idle workers take time, too."""
    yield
    if nextitem is None or nextitem.stash.get(GROUP, "") != SHARED:
        while running_clusters:
            running_clusters.pop().stop()


class LastingForkServer(ForkServer):
    """Serves the clusters of all tests, so that torch is imported once."""

    def close(self) -> None:
        """The next cluster needs it."""


@pytest.fixture(scope="session", autouse=True)
def one_fork_server() -> Iterator[None]:
    servers: list[LastingForkServer] = []

    def server(*arguments: Any) -> ForkServer:
        if not servers or is_gone(servers[-1].pid):
            servers.append(LastingForkServer(*arguments))
        return servers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "ForkServer", server)
        yield
    for each in servers:
        ForkServer.close(each)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny checkpoint with room for long answers."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048)


@pytest.fixture(scope="session")
def cluster(tiny: Tiny) -> Iterator[LocalCluster]:
    """2 stages x 3 uneven shards, one chord a layer."""
    with LocalCluster(tiny.path, 2, 3, "float32", "layer", num_slots=8) as running:
        running_clusters.append(running)
        yield running
