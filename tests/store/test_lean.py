"""Tiles that workers keep on disk, so that Redis need not hold them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner
from plans import plan_for

from skynet import cli
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.local.server import EmbeddedServer
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range
from skynet.settings import settings
from skynet.staging.lean import announce, drop_kept_tiles
from skynet.staging.stager import Stager, stage_checkpoint
from skynet.store.bad_tiles import push_bad_tile
from skynet.store.manifest import Manifest
from skynet.store.members import LOADING, READY, Member, Members
from skynet.store.staged_weights import StagedWeights
from skynet.store.staging_lock import LOCK_S
from skynet.store.tile_cache import TileCache
from skynet.store.weights import WeightStore
from skynet.wire import keys
from tests.cluster.processes import wait_for


@pytest.fixture
def manifest(client: redis.Redis, checkpoint: Checkpoint) -> Manifest:
    """Of the model, staged and in force on two workers that keep their tiles."""
    digest = checkpoint.digest()
    stage_checkpoint(client, checkpoint, digest)
    plan = plan_for(load_architecture(checkpoint.config), 1, 2, model=digest, epoch=3)
    plan = replace(plan, workers=("a", "b"))
    client.set(keys.plan_key(), plan.to_json())
    for name in ("a", "b"):
        renew(client, name)
    return WeightStore(client).require_manifest(digest)


def renew(client: redis.Redis, name: str, **fields: Any) -> None:
    known = {"state": READY, "epoch": 3, "keeps_tiles": True, **fields}
    Members(client, 60).renew(Member(name, f"{name}@here", "", "here", 7, **known))


def num_tiles(client: redis.Redis, manifest: Manifest) -> int:
    return manifest.num_tiles - len(WeightStore(client).missing_tiles(manifest))


def test_tiles_that_all_workers_keep_are_dropped(client: redis.Redis, manifest: Manifest) -> None:
    # When / Then
    assert drop_kept_tiles(client, manifest, LOCK_S) == manifest.num_tiles
    assert num_tiles(client, manifest) == 0
    assert drop_kept_tiles(client, manifest, LOCK_S) == 0
    # And what is small stays
    assert WeightStore(client).require_manifest(manifest.digest) == manifest
    assert WeightStore(client).missing_files(manifest) == []


@pytest.mark.parametrize(
    "reason", ["loading", "keeps none", "of another plan", "gone", "next plan", "missed", "staging"]
)
def test_tiles_that_may_be_needed_stay(
    client: redis.Redis, manifest: Manifest, reason: str
) -> None:
    # Given a worker that has not all of its tiles on disk, or a plan that others will need them for
    if reason == "loading":
        renew(client, "b", state=LOADING)
    elif reason == "keeps none":
        renew(client, "b", keeps_tiles=False)
    elif reason == "of another plan":
        renew(client, "b", epoch=2)
    elif reason == "gone":
        client.delete(keys.member_key("b"))
    elif reason == "next plan":
        client.set(keys.next_plan_key(), client.get(keys.plan_key()))  # type: ignore[arg-type]
    elif reason == "missed":
        push_bad_tile(client, manifest.digest, next(manifest.tile_names()))
    else:
        client.set(keys.staging_lock_key(manifest.digest), "another")
    # When / Then
    assert drop_kept_tiles(client, manifest, LOCK_S) == 0
    assert num_tiles(client, manifest) == manifest.num_tiles


def test_a_stager_drops_tiles_and_stages_them_on_demand(
    server: EmbeddedServer, client: redis.Redis, checkpoint: Checkpoint, manifest: Manifest
) -> None:
    # Given a stager of a lean model
    stager = Stager(server.url, checkpoint, lambda: None, lean=True)
    stop = threading.Event()
    watching = threading.Thread(target=stager.watch, args=(stop, 0.05))
    watching.start()
    try:
        # When all workers keep their tiles / Then Redis holds none
        wait_for("no tiles", lambda: num_tiles(client, manifest) == 0)
        # And when a worker starts that has none, all are staged again as they were, and stay
        renew(client, "b", state=LOADING)
        push_bad_tile(client, manifest.digest, next(manifest.tile_names()))
        wait_for("all tiles", lambda: num_tiles(client, manifest) == manifest.num_tiles)
        assert WeightStore(client).verify(manifest) == []
        # And they are dropped once it keeps them, too
        renew(client, "b")
        wait_for("no tiles again", lambda: num_tiles(client, manifest) == 0)
    finally:
        stop.set()
        watching.join(20)
    assert not watching.is_alive()


def test_absent_tiles_of_a_lean_model_are_no_damage(
    server: EmbeddedServer, client: redis.Redis, manifest: Manifest
) -> None:
    def skynet(*words: str) -> tuple[int, Any]:
        settings.cache_clear()
        environment = {"SKYNET_REDIS_URL": server.url}
        result = CliRunner().invoke(cli.main, words, env=environment)
        return result.exit_code, json.loads(result.stdout) if "--json" in words else result.output

    # Given a model without tiles
    drop_kept_tiles(client, manifest, LOCK_S)
    assert skynet("models", "verify", "--json")[0] == 1
    # When its stager says that it is lean / Then that is shown, and nothing is broken
    announce(client, manifest.digest)
    assert skynet("models", "verify", "--json") == (
        0,
        {"broken": {manifest.digest: []}, "bad_numbers": {manifest.digest: {}}},
    )
    [model] = skynet("models", "--json")[1]["models"]
    assert (model["tiles"], model["lean"]) == (0, True)
    assert "on the workers' disks" in skynet("models")[1]
    # And that ends with the stager
    assert 0 < int(client.pttl(keys.lean_key(manifest.digest))) <= 10_000  # type: ignore[arg-type]


def test_a_restart_fetches_nothing(client: redis.Redis, manifest: Manifest, tmp_path: Path) -> None:
    # Given a worker that has read every tensor
    def read_all() -> tuple[StagedWeights, list[Any]]:
        weights = StagedWeights(client, manifest, TileCache(tmp_path, 2**30))
        return weights, [
            weights.fetch(name, Range(0, tensor.shape[tensor.axis]))[0]
            for name, tensor in manifest.tensors.items()
        ]

    first, before = read_all()
    assert (first.fetched_bytes > manifest.num_bytes, first.cached_bytes) == (True, 0)
    # When Redis has no tiles any more, and it is started again
    drop_kept_tiles(client, manifest, LOCK_S)
    second, after = read_all()
    # Then all comes from the disk
    assert (second.fetched_bytes, second.cached_bytes) == (0, manifest.num_bytes)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
