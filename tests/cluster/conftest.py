"""Clusters that several tests share: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from checkpoints import Tiny, make_tiny

from skynet.local.cluster import LocalCluster


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny checkpoint with room for long answers."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048)


@pytest.fixture(scope="package")
def cluster(tiny: Tiny) -> Iterator[LocalCluster]:
    """2 stages x 3 uneven shards, one chord a layer."""
    with LocalCluster(tiny.path, 2, 3, "float32", "layer", num_slots=8) as running:
        yield running
