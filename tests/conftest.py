"""Fixtures that more than one part of the tests uses."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings as hypothesis_settings
from redis_servers import embedded_server

from skynet.checkpoint.checkpoint import Checkpoint, open_checkpoint
from skynet.checkpoint.demo import demo_checkpoint_path
from skynet.checkpoint.minilm import INSTALL, PACKAGE
from skynet.errors import CheckpointError
from skynet.local.server import EmbeddedServer
from skynet.settings import settings
from skynet.store.connection import connect

# Weights of tests do not belong into the developer's cache; tests of the cache name a directory.
os.environ["SKYNET_TILE_CACHE_GIB"] = "0"

# No test passes or fails by how fast it was.
hypothesis_settings.register_profile("skynet", deadline=None)
hypothesis_settings.load_profile("skynet")

# The tiny checkpoints of the parity tests, and Transformers' answers, serve the cluster tests too.
sys.path.insert(0, str(Path(__file__).parent / "parity"))


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """No test reads settings that another has left: this ends after `monkeypatch`'s undoing."""
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    """The demo model, converted; `make setup` does that, so that this is quick."""
    try:
        demo_checkpoint_path()
    except CheckpointError as error:
        pytest.skip(str(error))
    return open_checkpoint("demo", settings().cache_dir)


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Checkpoint:
    """all-MiniLM-L6-v2, unpacked; `make setup` installs its package."""
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"not installed; run: {INSTALL}")
    return open_checkpoint("minilm", settings().cache_dir)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """An embedded Redis on a Unix socket: its path must be short."""
    with embedded_server() as embedded:
        yield embedded


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client of that server, which is empty and has no limits."""
    connection = connect(server.url)
    connection.flushall()
    connection.config_set("maxmemory", 0)
    yield connection
    connection.close()
