"""Fixtures that more than one part of the tests uses."""

from __future__ import annotations

import pytest

from skynet.errors import CheckpointError
from skynet.models.checkpoint import Checkpoint, open_checkpoint
from skynet.models.demo import demo_checkpoint_path
from skynet.settings import settings


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    """The demo model, converted; `make setup` does that, so that this is quick."""
    try:
        demo_checkpoint_path()
    except CheckpointError as error:
        pytest.skip(str(error))
    return open_checkpoint("demo", settings().cache_dir)
