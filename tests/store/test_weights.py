"""Staging: tensors come back by region, and an error names each missing or corrupted tile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from skynet.checkpoint.tensor_plans import TILE_HEADER_BYTES, TensorPlan
from skynet.client.served_model import ServedModel
from skynet.errors import CheckpointError, NoModel, SkynetError, TileCorrupted, TileMissing
from skynet.local.server import EmbeddedServer
from skynet.orchestrator.intake import Served
from skynet.planning.ranges import Range
from skynet.store.connection import connect
from skynet.store.manifest import Manifest, TileName
from skynet.store.room import needed_bytes
from skynet.store.staging import StagingJob
from skynet.store.staging_lock import StagingLock
from skynet.store.targets import Target
from skynet.store.weights import StagedWeights, WeightStore
from skynet.wire import keys
from skynet.wire.tensor_dtypes import TRAVELS_AS
from tests.cluster.processes import wait_for

DIGEST = "d1"
TENSORS = {
    "column": TensorPlan("model.column", (40, 24), "bfloat16", 0),
    "row": TensorPlan("model.row", (24, 40), "bfloat16", 1),
    "single": TensorPlan("model.single", (17, 5), "float32", 0),
    "norm": TensorPlan("model.norm", (24,), "float16", 0),
}
FILES = {"tokenizer.json": b"{}", "generation_config.json": b'{"eos_token_id": 2}'}
TILE_BYTES = 256 + TILE_HEADER_BYTES


class Source:
    """A checkpoint of random bits; `fails_at` makes a tensor unreadable."""

    def __init__(self, fails_at: str = "") -> None:
        random = np.random.default_rng(3)
        self.fails_at = fails_at
        self.reads = 0
        self.arrays: dict[str, npt.NDArray[Any]] = {
            plan.source_name: random.integers(0, 255, plan.num_bytes, np.uint8)
            .view(TRAVELS_AS[plan.dtype])
            .reshape(plan.shape)
            for plan in TENSORS.values()
        }

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        if name == self.fails_at:
            raise CheckpointError(f"{name} cannot be read")
        self.reads += 1
        return self.arrays[name].take(range(start, stop), axis)


def job_of(source: Source, tile_bytes: int = TILE_BYTES) -> StagingJob:
    return StagingJob(DIGEST, "tiny", {"model_type": "llama"}, TENSORS, FILES, source, tile_bytes)


def stage(
    client: redis.Redis, source: Source, *, tile_bytes: int = TILE_BYTES, **options: Any
) -> Manifest:
    return WeightStore(client).stage(job_of(source, tile_bytes), **options)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(TENSORS)),
    ends=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_any_region_comes_back_bit_by_bit(
    client: redis.Redis, name: str, ends: tuple[int, int]
) -> None:
    # Given staged tensors of several tiles each
    source = Source()
    manifest = stage(client, source)
    plan = TENSORS[name]
    start, stop = sorted(min(end, plan.shape[plan.axis]) for end in ends)
    # When a region is fetched, inside of a tile, across several, empty or whole
    array, dtype = StagedWeights(client, manifest).fetch(name, Range(start, stop))
    # Then it is the source's, by bits
    expected = source.arrays[plan.source_name].take(range(start, stop), plan.axis)
    assert dtype == plan.dtype
    assert array.dtype.str == TRAVELS_AS[plan.dtype]
    assert array.shape == expected.shape
    assert array.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_only_the_tiles_of_the_region_are_read(client: redis.Redis) -> None:
    # Given a tensor in tiles of 5 rows
    manifest = stage(client, Source())
    tiles = manifest.tensors["column"].tiles
    assert [(tile.start, tile.stop) for tile in tiles][:3] == [(0, 5), (5, 10), (10, 15)]
    # When all tiles but two are gone
    for index in range(len(tiles)):
        if index not in (1, 2):
            client.delete(keys.tile_key(DIGEST, "column", index))
    # Then a region within those two is still there, and more is not
    weights = StagedWeights(client, manifest)
    assert weights.fetch("column", Range(6, 15))[0].shape == (9, 24)
    assert weights.fetched_bytes < 2 * (TILE_BYTES + 100)
    with pytest.raises(TileMissing, match=r"tile 3 of column \[15, 20\)"):
        weights.fetch("column", Range(6, 16))


def test_the_manifest_says_what_was_staged_and_comes_back_as_it_was(client: redis.Redis) -> None:
    # Given a staging with a progress bar
    reported_bytes: list[int] = []
    manifest = stage(client, Source(), progress=reported_bytes.append)
    # When it is read again
    store = WeightStore(client)
    # Then it is the same, with its files, and all bytes were reported
    assert store.require_manifest(DIGEST) == manifest
    assert store.read_files(manifest) == FILES
    assert manifest.num_bytes == sum(plan.num_bytes for plan in TENSORS.values())
    assert sum(reported_bytes) >= manifest.num_bytes
    with pytest.raises(NoModel, match="not in Redis"):
        store.require_manifest("another")


def test_a_staging_that_stops_half_way_leaves_no_manifest(client: redis.Redis) -> None:
    # Given a checkpoint whose last tensor cannot be read
    with pytest.raises(CheckpointError, match=r"model\.norm"):
        stage(client, Source(fails_at="model.norm"))
    # Then the tiles are not taken for a model
    assert WeightStore(client).manifest(DIGEST) is None
    # And when it is staged again, all is there
    source = Source()
    manifest = stage(client, source)
    array, _ = StagedWeights(client, manifest).fetch("norm", Range(0, 24))
    assert array.tobytes() == source.arrays["model.norm"].tobytes()


def test_a_second_staging_reads_and_writes_nothing(client: redis.Redis) -> None:
    # Given a staged checkpoint
    first = stage(client, Source())
    written = client.info("stats")["total_net_input_bytes"]  # type: ignore[index]
    # When it is staged again, in other tiles
    source = Source()
    second = stage(client, source, tile_bytes=64 + TILE_HEADER_BYTES)
    # Then nothing happens
    assert second == first
    assert source.reads == 0
    assert client.info("stats")["total_net_input_bytes"] - written < 1000  # type: ignore[index]


@pytest.mark.parametrize("tensor", ["column", "row"])
def test_a_corrupted_tile_is_named(client: redis.Redis, tensor: str) -> None:
    # Given a tile in which one bit is wrong
    manifest = stage(client, Source())
    key = keys.tile_key(DIGEST, tensor, 2)
    payload = bytearray(client.get(key) or b"")  # type: ignore[arg-type]
    payload[-1] ^= 1
    client.set(key, bytes(payload))
    # When it is fetched / Then the error names it, and other tiles are fine
    weights = StagedWeights(client, manifest)
    weights.fetch(tensor, Range(0, 10))
    with pytest.raises(TileCorrupted, match=rf"tile 2 of {tensor} \[10, 15\)"):
        weights.fetch(tensor, Range(0, 11))


def test_a_missing_tile_or_tensor_is_named(client: redis.Redis) -> None:
    # Given a staging of which a tile is gone
    manifest = stage(client, Source())
    client.delete(keys.tile_key(DIGEST, "single", 0))
    weights = StagedWeights(client, manifest)
    # Then each is named
    with pytest.raises(TileMissing, match=r"tile 0 of single \[0, 12\)"):
        weights.fetch("single", Range(3, 4))
    with pytest.raises(TileMissing, match="nothing"):
        weights.fetch("nothing", Range(0, 1))


def test_a_source_of_another_shape_is_refused(client: redis.Redis) -> None:
    # Given a checkpoint that is not what the plan says
    source = Source()
    source.arrays["model.single"] = source.arrays["model.single"][:, :4]
    # When it is staged / Then the tensor is named
    with pytest.raises(CheckpointError, match=r"model\.single.*expected float32\[12, 5\]"):
        stage(client, source)
    assert WeightStore(client).manifest(DIGEST) is None


BIG_FILES = {"tokenizer.json": b"{}"}


def big_tensors() -> dict[str, TensorPlan]:
    return {"big": TensorPlan("big", (4096, 1024), "float32", 0)}


class Zeros:
    """A big checkpoint; `on_read` is called with each read's number."""

    def __init__(self, on_read: Any = None) -> None:
        self.on_read = on_read
        self.reads = 0

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        self.reads += 1
        if self.on_read:
            self.on_read(self.reads)
        return np.zeros((stop - start, 1024), np.float32)


BIG_TILE = 512 * 1024


def stage_big(client: redis.Redis, source: Zeros) -> None:
    job = StagingJob(DIGEST, "big", {}, big_tensors(), BIG_FILES, source, BIG_TILE)
    WeightStore(client).stage(job)


def test_too_little_memory_is_an_error_before_anything_is_written(client: redis.Redis) -> None:
    # Given a Redis that may take 8 MiB more
    used = client.info("memory")["used_memory"]  # type: ignore[index]
    client.config_set("maxmemory", used + 8 * 2**20)
    source = Zeros()
    # When 16 MiB are staged / Then the error has both numbers, and nothing was touched
    with pytest.raises(SkynetError, match=r"needs 1[67] MiB, [78] MiB are free.*raise"):
        stage_big(client, source)
    assert source.reads == 0
    assert client.dbsize() == 0


def test_the_estimated_memory_of_a_model_is_what_it_uses(client: redis.Redis) -> None:
    # Given the estimate
    memory = client.info("memory")
    tensors = big_tensors().values()
    needed = needed_bytes(tensors, BIG_FILES, BIG_TILE, memory["mem_allocator"])  # type: ignore[index]
    # When it is staged
    stage_big(client, Zeros())
    # Then it took no more than that, and not much less
    took = client.info("memory")["used_memory"] - memory["used_memory"]  # type: ignore[index]
    assert 0.9 * needed < took <= needed


def test_tiles_of_a_power_of_two_do_not_cost_a_size_class_more() -> None:
    # Given rows of which a power of two fills a tile
    plan = TensorPlan("big", (65536, 1024), "float32", 0)
    # When the room is counted as jemalloc takes it / Then a tile is not a quarter bigger
    needed = needed_bytes([plan], {}, BIG_TILE, "jemalloc-5.3.0")
    assert plan.num_bytes < needed < 1.03 * plan.num_bytes


def test_a_model_bigger_than_the_host_is_refused(client: redis.Redis) -> None:
    # Given a Redis without a limit, and a model that no host holds
    huge = {"huge": TensorPlan("huge", (2**30, 2**20), "float32", 0)}
    source = Zeros()
    # When it is staged / Then the error names the host's memory, and nothing is read
    with pytest.raises(SkynetError, match=r"free of its host's memory of \d+ MiB.*more memory"):
        WeightStore(client).stage(StagingJob(DIGEST, "huge", {}, huge, {}, source, 2**24))
    assert source.reads == 0
    assert client.dbsize() == 0


def test_memory_that_runs_out_half_way_leaves_no_half_staged_model(client: redis.Redis) -> None:
    # Given a Redis whose memory another client takes when half is written
    def take_the_rest(reads: int) -> None:
        if reads == 20:
            used = client.info("memory")["used_memory"]  # type: ignore[index]
            client.config_set("maxmemory", used + 2**20)

    client.set("of-somebody-else", 1)
    # When a model is staged
    with pytest.raises(SkynetError, match=r"needs 1[67] MiB"):
        stage_big(client, Zeros(take_the_rest))
    # Then nothing of it is left, and the rest is
    assert client.keys("*") == [b"of-somebody-else"]


def test_a_redis_that_may_evict_is_refused(client: redis.Redis) -> None:
    # Given a Redis that drops keys when it is full
    client.config_set("maxmemory", 2**30)
    client.config_set("maxmemory-policy", "allkeys-lru")
    # When a model is staged / Then the setting is named
    try:
        with pytest.raises(SkynetError, match="maxmemory-policy allkeys-lru"):
            stage(client, Source())
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert client.dbsize() == 0


def test_a_manifest_of_another_format_is_refused(client: redis.Redis) -> None:
    # Given what a later SkyNet staged
    manifest = stage(client, Source())
    text = manifest.to_json().replace('"format": 3', '"format": 4')
    client.set(keys.manifest_key(DIGEST), text)
    # When it is read / Then both formats are named
    with pytest.raises(SkynetError, match="format 4, this SkyNet reads 3"):
        WeightStore(client).manifest(DIGEST)


def test_a_model_staged_before_its_tokenizer_was_transformers_is_refused(
    client: redis.Redis,
) -> None:
    # Given what the SkyNet before staged: other files, which this one would not find
    text = stage(client, Source()).to_json().replace('"format": 3', '"format": 1')
    client.set(keys.manifest_key(DIGEST), text)
    # When a client or an orchestrator reads it / Then it is told to stage it again
    with pytest.raises(SkynetError, match=r"format 1, .*split it again with `skynet split`"):
        ServedModel.staged(client, DIGEST)
    served, problem = Served.staged(client, Target(DIGEST, "tiny", "float32", "auto", 1, 8))
    assert served is None
    assert "tiny: the staged model has format 1" in problem


def test_two_stagers_at_once_are_one_staging(client: redis.Redis, server: EmbeddedServer) -> None:
    # Given a stager that stops in the middle, until another waits for it
    waits, sources = threading.Event(), [Source(), Source()]

    class Slow(Source):
        def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
            assert waits.wait(30), "nobody waited"
            return super().read(name, axis, start, stop)

    sources[0] = Slow()
    with ThreadPoolExecutor(2) as pool, connect(server.url) as other:
        first = pool.submit(stage, other, sources[0])
        wait_for("the first has the lock", lambda: client.exists(keys.staging_lock_key(DIGEST)))
        # When the other comes
        second = pool.submit(stage, client, sources[1], waiting=waits.set, tile_bytes=4096)
        # Then it takes what the first has staged, and the lock is free again
        assert first.result(30) == second.result(30)
    assert sources[1].reads == 0
    assert not client.exists(keys.staging_lock_key(DIGEST))
    assert WeightStore(client).verify(WeightStore(client).require_manifest(DIGEST)) == []


def test_a_killed_stagers_lock_runs_out_and_its_leftovers_go(client: redis.Redis) -> None:
    # Given the lock of a process that is no more, and tiles that no manifest names
    assert StagingLock(client, DIGEST, lock_s=0.5).acquire()
    client.set(keys.tile_key(DIGEST, "column", 0), b"half a tile")
    client.set(keys.tile_key(DIGEST, "column", 99), b"of a finer cut")
    # When it is staged again
    waited: list[int] = []
    manifest = stage(client, Source(), waiting=lambda: waited.append(1))
    # Then it waited, then all is as it should be and nothing is left over
    assert waited
    assert WeightStore(client).verify(manifest) == []
    assert client.dbsize() == manifest.num_tiles + len(FILES) + 1


def test_a_stager_that_was_stopped_for_long_writes_nothing_more(client: redis.Redis) -> None:
    # Given a stager that stops; its lock runs out, and another stages, cutting otherwise
    store = WeightStore(client)

    class Stopped(Source):
        def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
            if self.reads == 3:
                client.delete(keys.staging_lock_key(DIGEST))  # as if its time had passed
                stage(client, Source(), tile_bytes=4096)
            return super().read(name, axis, start, stop)

    # When it wakes and goes on / Then it is refused
    with pytest.raises(SkynetError, match=r"its lock is gone.*Stage again"):
        stage(client, Stopped())
    # And what the other staged is whole
    assert store.verify(store.require_manifest(DIGEST)) == []


def test_a_lock_lost_at_the_very_end_leaves_no_manifest(client: redis.Redis) -> None:
    # Given a stager whose lock passes to another when all tiles are written
    def lose(_: int) -> None:
        client.set(keys.staging_lock_key(DIGEST), b"another")

    # When / Then
    with pytest.raises(SkynetError, match="its lock is gone"):
        stage(client, Source(), progress=lose)
    assert WeightStore(client).manifest(DIGEST) is None
    # And the other's lock is still the other's
    assert client.get(keys.staging_lock_key(DIGEST)) == b"another"


def break_tiles(client: redis.Redis) -> list[TileName]:
    client.delete(keys.tile_key(DIGEST, "column", 1))
    client.set(keys.tile_key(DIGEST, "row", 0), b"rubbish")
    return [TileName("column", 1), TileName("row", 0)]


def test_verify_names_missing_and_corrupted_tiles(client: redis.Redis) -> None:
    # Given a model of which one tile is gone and one is rubbish
    manifest = stage(client, Source())
    broken = break_tiles(client)
    # When all of it is checked / Then both are named, and all bytes were reported
    reported_bytes: list[int] = []
    assert WeightStore(client).verify(manifest, reported_bytes.append) == broken
    assert sum(reported_bytes) > 0.9 * manifest.num_bytes
    assert WeightStore(client).verify(manifest, among=[TileName("row", 1)]) == []


def test_repair_writes_only_what_is_broken_as_it_was(client: redis.Redis) -> None:
    # Given a broken model, of which a file is gone too
    manifest = stage(client, Source())
    before = {key: client.get(key) for key in client.scan_iter()}
    broken = break_tiles(client)
    client.delete(keys.file_key(DIGEST, "tokenizer.json"))
    # When it is repaired by a stager with another tile size
    source, store = Source(), WeightStore(client)
    assert store.restage_tiles(manifest, job_of(source, 4096), store.verify(manifest)) == 2
    # Then everything is byte for byte as before, and no more was read than was broken
    assert {key: client.get(key) for key in client.scan_iter()} == before
    assert source.reads == len(broken)


def test_a_checkpoint_that_changed_repairs_nothing(client: redis.Redis) -> None:
    # Given a missing tile, and a checkpoint with other weights
    manifest = stage(client, Source())
    broken = break_tiles(client)
    source = Source()
    source.arrays["model.column"] = source.arrays["model.column"] + 1
    # When it is to be repaired / Then the tile is named, and nothing wrong is written
    store = WeightStore(client)
    with pytest.raises(CheckpointError, match=r"tile 1 of column.*reads differently"):
        store.restage_tiles(manifest, job_of(source), broken)
    assert store.verify(manifest) == broken
