"""A stager that stays: what Redis loses comes back, what workers miss is repaired."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from click.testing import CliRunner, Result

from skynet import cli
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import BadRequest, NoModel, TileCorrupted, TileMissing
from skynet.local.server import EmbeddedServer
from skynet.planning.ranges import Range
from skynet.settings import settings
from skynet.staging.stager import Stager, stage_checkpoint
from skynet.store.bad_tiles import push_bad_tile, report_bad_tile, reported_tiles
from skynet.store.connection import connect
from skynet.store.manifest import TileName
from skynet.store.staged_models import find_model, list_models, remove_model
from skynet.store.staged_weights import StagedWeights
from skynet.store.staging_lock import StagingLock
from skynet.store.targets import Target, Targets
from skynet.store.weights import WeightStore
from skynet.wire import keys
from tests.cluster.processes import wait_for


def contents(client: redis.Redis, digest: str) -> dict[bytes, bytes]:
    redis_keys = sorted(cast("list[bytes]", client.keys(keys.model_keys(digest))))
    return dict(zip(redis_keys, cast("list[bytes]", client.mget(redis_keys)), strict=True))


@contextmanager
def watching(
    server: EmbeddedServer, checkpoint: Checkpoint, publish: Callable[[], None]
) -> Iterator[Stager]:
    stager = Stager(server.url, checkpoint, publish)
    stager.start(every_s=0.05)
    try:
        yield stager
    finally:
        stager.stop()


def test_a_model_that_redis_lost_is_staged_and_published_again(
    server: EmbeddedServer, client: redis.Redis, checkpoint: Checkpoint
) -> None:
    # Given a staged model and a stager that stays
    digest = checkpoint.digest()
    stage_checkpoint(client, checkpoint, digest)
    before = contents(client, digest)
    with watching(server, checkpoint, lambda: void(client.incr("published"))):
        # When Redis has lost everything, twice
        for _ in range(2):
            client.flushall()
            wait_for("the target is asked for again", lambda: client.get("published") == b"1")
            # Then all of it is back before it is asked for
            assert contents(client, digest) == before
            assert not client.exists(keys.staging_lock_key(digest))


def void(_: Any) -> None:
    """For lambdas that must return nothing."""


def test_a_stager_outlives_redis(
    tmp_path: Path, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a Redis that is away
    short = Path(f"/tmp/{tmp_path.parent.name[-20:]}-{tmp_path.name[:10]}")
    short.mkdir()
    restarted = EmbeddedServer(short)
    restarted.start()
    published = threading.Event()
    caplog.set_level(logging.INFO, "skynet.staging.stager")
    try:
        with watching(restarted, checkpoint, published.set):
            wait_for("the first staging", published.is_set)
            restarted.stop()
            wait_for("it is noticed", lambda: "trying until it works" in caplog.text)
            published.clear()
            # When it comes back, empty
            restarted.start()
            wait_for("the second staging", published.is_set)
        # Then the model is there, and the time between was one line in the log
        with connect(restarted.url) as client:
            store = WeightStore(client)
            assert store.verify(store.require_manifest(checkpoint.digest())) == []
        assert caplog.text.count("trying until it works") == 1
    finally:
        restarted.stop()
        for file in short.iterdir():
            file.unlink()
        short.rmdir()


def test_publishing_is_tried_until_it_works(
    server: EmbeddedServer, client: redis.Redis, checkpoint: Checkpoint
) -> None:
    # Given a Redis that goes away between staging and publishing
    tries: list[int] = []

    def publish() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise redis.ConnectionError("away")

    # When / Then
    with watching(server, checkpoint, publish):
        wait_for("it is published", lambda: len(tries) == 3)
    assert WeightStore(client).is_staged(checkpoint.digest())


def test_tiles_that_workers_miss_are_repaired(
    server: EmbeddedServer, client: redis.Redis, checkpoint: Checkpoint
) -> None:
    # Given a staged model of which one tile is gone and one is rubbish
    digest = checkpoint.digest()
    stage_checkpoint(client, checkpoint, digest)
    before = contents(client, digest)
    weights = StagedWeights(client, WeightStore(client).require_manifest(digest))
    first, second = list(weights.manifest.tensors)[:2]
    client.delete(keys.tile_key(digest, first, 0))
    client.set(keys.tile_key(digest, second, 0), b"rubbish")
    # When a worker meets and reports both, and another reports what never was
    for tensor, kind in ((first, TileMissing), (second, TileCorrupted)):
        with pytest.raises(kind) as caught:
            weights.fetch(tensor, Range(0, 1))
        report_bad_tile(client, caught.value)
    push_bad_tile(client, digest, TileName("never", 7))
    assert reported_tiles(client, digest)[:2] == [TileName(first, 0), TileName(second, 0)]
    assert 0 < cast(int, client.ttl(keys.bad_tiles_key(digest))) <= 3600
    # Then the stager makes them as they were, forgets the reports, and publishes nothing
    published = threading.Event()
    with watching(server, checkpoint, published.set):
        wait_for("no reports", lambda: not client.exists(keys.bad_tiles_key(digest)))
    assert contents(client, digest) == before
    assert not published.is_set()


def test_a_stager_that_waits_for_another_can_be_stopped(
    server: EmbeddedServer, client: redis.Redis, checkpoint: Checkpoint
) -> None:
    # Given a stager that waits for another's lock
    lock = StagingLock(client, checkpoint.digest())
    assert lock.acquire()
    waits = threading.Event()
    stager = Stager(server.url, checkpoint, waits.clear, progress=lambda *_: waits.set())
    stop = threading.Event()
    thread = threading.Thread(target=stager.watch, args=(stop,))
    thread.start()
    wait_for("it waits", waits.is_set)
    # When it is stopped / Then it ends, and has staged nothing
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert not WeightStore(client).is_staged(checkpoint.digest())


# -- skynet models ----------------------------------------------------------------------------


@pytest.fixture
def two_models(client: redis.Redis, checkpoint: Checkpoint) -> str:
    """A whole model, in force, and what a killed stager left; the digest of the whole one."""
    digest = checkpoint.digest()
    stage_checkpoint(client, checkpoint, digest)
    Targets(client).ask(Target(digest, "tiny-llama", "float32", "auto", 4, 64))
    client.set(keys.tile_key("feed" * 16, "half", 0), b"x" * 1000)
    return digest


def skynet(server: EmbeddedServer, *words: str) -> Result:
    settings.cache_clear()
    try:
        return CliRunner().invoke(cli.main, words, env={"SKYNET_REDIS_URL": server.url})
    finally:
        settings.cache_clear()


def test_models_are_listed_whole_and_half(
    server: EmbeddedServer, client: redis.Redis, two_models: str
) -> None:
    # When they are listed for programs
    models = json.loads(skynet(server, "models", "--json").stdout)["models"]
    # Then both are listed with their tiles
    half, whole = models
    assert (half["digest"], half["complete"], half["num_bytes"]) == ("feed" * 16, False, 1000)
    assert (whole["name"], whole["digest"]) == ("tiny-llama", two_models)
    assert whole["complete"]
    assert whole["in_force"]
    assert not half["in_force"]
    assert whole["tiles"] == whole["tiles_wanted"] > 0
    # And people see the same
    page = skynet(server, "models").stdout
    assert two_models[:12] in page
    assert "complete, in force" in page
    assert "incomplete" in page
    # And a model that lost a tile is not complete
    tile = next(WeightStore(client).require_manifest(two_models).tile_names())
    client.delete(tile.key(two_models))
    assert not find_model(client, two_models[:8]).complete


def test_removal_frees_one_model_only(
    server: EmbeddedServer, client: redis.Redis, two_models: str
) -> None:
    # Given the one in force: it stays, unless forced
    refused = skynet(server, "models", "remove", two_models[:8])
    assert refused.exit_code == 1
    assert "is in force" in refused.stderr
    assert WeightStore(client).is_staged(two_models)
    # When the leftovers are removed / Then the other model is whole
    assert skynet(server, "models", "remove", "feed").exit_code == 0
    assert [model.digest for model in list_models(client)] == [two_models]
    assert list_models(client)[0].complete
    # When it is forced, by its name / Then nothing of it is left
    megabytes = list_models(client)[0].num_bytes / 1e6
    removed = skynet(server, "models", "remove", "tiny-llama", "--force")
    assert removed.exit_code == 0
    assert f"freed {megabytes:.1f} MB of tiny-llama" in removed.stderr
    assert client.keys(keys.model_keys("*")) == []
    with pytest.raises(NoModel, match="the name 'feed', or a digest that starts with it"):
        find_model(client, "feed")


def test_an_ambiguous_name_or_a_model_being_staged_is_not_removed(
    client: redis.Redis, two_models: str
) -> None:
    # Given a model that another process stages
    assert StagingLock(client, "feed" * 16).acquire()
    # Then it is said so, and it stays
    model = find_model(client, "feed")
    assert model.being_staged
    with pytest.raises(BadRequest, match="is being staged"):
        remove_model(client, model)
    assert find_model(client, "feed").tiles == 1
    with pytest.raises(BadRequest, match="give more of a digest"):
        find_model(client, "")


def test_verify_tells_what_is_broken(
    server: EmbeddedServer, client: redis.Redis, two_models: str
) -> None:
    # Given a whole model
    assert "all tiles match" in skynet(server, "models", "verify", two_models[:8]).stdout
    assert "all tiles match" in skynet(server, "models", "verify", "tiny-llama").stdout
    # When a tile is gone / Then it is named, for people and programs, with exit code 1
    tile = next(WeightStore(client).require_manifest(two_models).tile_names())
    client.delete(tile.key(two_models))
    shown = skynet(server, "models", "verify", two_models)
    assert shown.exit_code == 1
    assert str(tile) in shown.stdout
    verified = skynet(server, "models", "verify", "--json")
    assert verified.exit_code == 1
    broken = json.loads(verified.stdout)["broken"]
    assert broken == {two_models: [str(tile)], "feed" * 16: ["the manifest"]}
