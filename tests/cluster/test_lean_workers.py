"""A lean model on real workers: Redis holds no weights, and every restart finds its own."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from checkpoints import Tiny
from processes import command, wait_for

from skynet.client.client import Client
from skynet.local.server import EmbeddedServer
from skynet.store.staged_models import list_models
from skynet.store.targets import Targets

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
NEW = 12
LOADED = re.compile(r"([\d.]+) MB from Redis, ([\d.]+) MB from this machine's cache")


def test_workers_of_a_lean_model_start_from_their_disks(
    server: EmbeddedServer, client: redis.Redis, tiny: Tiny, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    environment = {
        "SKYNET_REDIS_URL": server.url,
        "SKYNET_CACHE_DIR": str(cache),
        "SKYNET_TILE_CACHE_GIB": "1",
    }
    user = Client(server.url)

    def start(stack: ExitStack, place: str, log: str) -> Path:
        words = ("celery", "-A", "skynet", "worker", "-Q", place, "-l", "INFO")
        path = tmp_path / log
        stack.enter_context(command(*words, environment=environment, log=path, cwd=tmp_path))
        return path

    def num_tiles() -> int:
        [model] = list_models(client)
        return model.tiles

    def check_answers() -> None:
        generations = user.submit_prompts(tiny.prompts, max_tokens=NEW)
        got = [generation.get(timeout=90).token_ids for generation in generations]
        assert got == [tokens[:NEW] for tokens in tiny.tokens]

    with ExitStack() as stack:
        # Given a lean model on two workers
        shape = ("--stages", "1", "--shards", "2", "--fixed")
        split = ("skynet.cli", "split", str(tiny.path), *shape, "--lean")
        stack.enter_context(
            command(*split, environment=environment, log=tmp_path / "split.log", cwd=tmp_path)
        )
        wait_for("the model to be asked for", Targets(client).current)
        start(stack, "orchestrator", "orchestrator.log")
        start(stack, "stage0.shard0", "shard0.log")
        with ExitStack() as first:
            start(first, "stage0.shard1", "first.log")
            check_answers()
            # When both keep their weights / Then Redis drops them all, and they go on
            wait_for("no tiles in Redis", lambda: num_tiles() == 0)
            check_answers()
        # And when one is started again, it reads its weights from disk
        with ExitStack() as second:
            log = start(second, "stage0.shard1", "second.log")
            check_answers()
            loads = LOADED.findall(log.read_text())
            assert loads
            assert all(float(fetched) == 0 < float(cached) for fetched, cached in loads)
        # And when a machine has no weights, they are staged again for it
        shutil.rmtree(cache / "tiles")
        start(stack, "stage0.shard1", "third.log")
        check_answers()
        wait_for("no tiles in Redis again", lambda: num_tiles() == 0)
    user.close()
