"""Writes a checkpoint's tiles into Redis, all or nothing.

Tiles and files first, the manifest last, all under the staging lock. Holds at most `BATCH_BYTES`
and one tile in memory.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import redis

from skynet.checkpoint.bad_numbers import add_count, count_bad_numbers, spell_counts
from skynet.checkpoint.tensor_plans import TensorPlan
from skynet.errors import CheckpointError, SkynetError, WireError
from skynet.planning.ranges import Range
from skynet.store.away import RedisFull
from skynet.store.connection import server_info
from skynet.store.foreign import is_wrong_type
from skynet.store.manifest import Manifest, StagedTensor, Tile, TileName
from skynet.store.room import check_room, needed_bytes, room_message
from skynet.store.staging_lock import StagingLock
from skynet.wire import codec, keys
from skynet.wire.tensor_dtypes import travels_as

logger = logging.getLogger(__name__)

BATCH_BYTES = 8 * 2**20
KEYS_AT_ONCE = 1000

Progress = Callable[[int], None]  # called with the bytes just written or checked
Waiting = Callable[[], None]  # called again and again while another process holds the lock


class TensorSource(Protocol):
    """Reads indices [start, stop) of a checkpoint's tensor along an axis."""

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class StagingJob:
    """A model to stage: its tensors and their cuts, its files, and the checkpoint to read from."""

    digest: str
    name: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorPlan]
    files: Mapping[str, bytes]
    source: TensorSource
    tile_bytes: int


class ModelWriter:
    """Stages or repairs the model of one job."""

    def __init__(
        self, client: redis.Redis, job: StagingJob, lock_s: float, progress: Progress | None = None
    ) -> None:
        self.client = client
        self.job = job
        self.progress = progress
        self.lock = StagingLock(client, job.digest, lock_s)
        self._bad_numbers: dict[str, int] = {}
        self._batch: dict[str, bytes] = {}
        self._batch_bytes = 0

    def stage(self, waiting: Waiting | None = None) -> tuple[Manifest, bool]:
        """Write the whole model. Returns its manifest; False if another process staged it."""
        job = self.job
        with self.lock.held(waiting):
            manifest = readable_manifest(self.client, job.digest)
            if manifest is not None:  # staged by another process during the wait
                return manifest, False
            drop_model(self.client, self.lock)  # leftovers, perhaps of another tile size
            check_room(self.client, job.tensors.values(), job.files, job.tile_bytes)
            try:
                staged = self._write_all()
                num_bytes = sum(plan.num_bytes for plan in job.tensors.values())
                manifest = Manifest(
                    job.digest, job.name, job.config, staged, tuple(job.files), num_bytes
                )
                self.lock.write_manifest(manifest.to_json())
            except RedisFull as error:
                self._batch.clear()
                drop_model(self.client, self.lock)
                allocator = str(server_info(self.client, "memory").get("mem_allocator", ""))
                needed = needed_bytes(job.tensors.values(), job.files, job.tile_bytes, allocator)
                raise SkynetError(room_message(self.client, needed)) from error
            except CheckpointError:
                drop_model(self.client, self.lock)
                raise
        if self._bad_numbers:
            logger.warning(
                "%s: NaN or infinity among the weights, in %s; requests that meet them will fail",
                job.name,
                spell_counts(self._bad_numbers),
            )
        return manifest, True

    def repair(
        self,
        manifest: Manifest,
        tiles: Iterable[TileName],
        files: Iterable[str],
        waiting: Waiting | None = None,
    ) -> None:
        """Write these tiles and files again, byte for byte as they were."""
        with self.lock.held(waiting):
            if readable_manifest(self.client, self.job.digest) != manifest:
                raise SkynetError(
                    f"model {self.job.digest[:12]} was removed or staged anew before its repair: "
                    "try again"
                )
            for tile in tiles:
                self._restage(manifest, tile)
            self._add_files(files)
            self._flush()

    def _write_all(self) -> dict[str, StagedTensor]:
        staged: dict[str, StagedTensor] = {}
        for name, plan in self.job.tensors.items():
            tiles = [
                self._stage_tile(TileName(name, index), plan, region)
                for index, region in enumerate(plan.tile_ranges(self.job.tile_bytes))
            ]
            staged[name] = StagedTensor(plan.shape, plan.dtype, plan.axis, tuple(tiles))
        self._add_files(self.job.files)
        self._flush()
        return staged

    def _stage_tile(self, name: TileName, plan: TensorPlan, region: Range) -> Tile:
        array = self._read(plan, region)
        bad = count_bad_numbers(array, plan.dtype, plan.suppresses)
        add_count(self._bad_numbers, plan.source_name, bad)
        payload = codec.encode(array)
        self._add(name.key(self.job.digest), payload)
        return Tile(region.start, region.stop, zlib.crc32(payload))

    def _restage(self, manifest: Manifest, name: TileName) -> None:
        tile, plan = manifest.tile(name), self.job.tensors.get(name.tensor)
        if tile is None or plan is None:
            raise CheckpointError(f"the checkpoint has no {name} of {manifest.name}")
        payload = codec.encode(self._read(plan, Range(tile.start, tile.stop)))
        if zlib.crc32(payload) != tile.checksum:
            raise CheckpointError(
                f"{name} of {manifest.name} reads differently from what was staged: the "
                "checkpoint's files have changed; split the model again"
            )
        self._add(name.key(self.job.digest), payload)

    def _read(self, plan: TensorPlan, region: Range) -> npt.NDArray[Any]:
        """A tile's numbers, contiguous."""
        self.lock.keep()
        array = self.job.source.read(plan.source_name, plan.axis, region.start, region.stop)
        expected = list(plan.shape)
        expected[plan.axis] = region.size
        if list(array.shape) != expected or array.dtype.str != travels_as(plan.dtype):
            raise CheckpointError(
                f"tensor {plan.source_name} [{region.start}, {region.stop}) was read as "
                f"{array.dtype}{list(array.shape)}, expected {plan.dtype}{expected}"
            )
        return np.ascontiguousarray(array)

    def _add_files(self, names: Iterable[str]) -> None:
        for name in names:
            self._add(keys.file_key(self.job.digest, name), self.job.files[name])

    def _add(self, key: str, payload: bytes) -> None:
        """Write a key with the next batch."""
        if self._batch and self._batch_bytes + len(payload) > BATCH_BYTES:
            self._flush()
        self._batch[key] = payload
        self._batch_bytes += len(payload)

    def _flush(self) -> None:
        if not self._batch:
            return
        self.lock.write(self._batch)
        if self.progress:
            self.progress(self._batch_bytes)
        self._batch.clear()
        self._batch_bytes = 0


def readable_manifest(client: redis.Redis, digest: str) -> Manifest | None:
    """The manifest of this digest; None if there is none that this version can read."""
    try:
        text = client.get(keys.manifest_key(digest))
        return None if text is None else Manifest.from_json(cast(bytes, text))
    except WireError:
        return None
    except redis.ResponseError as error:
        if is_wrong_type(error):
            return None
        raise


def drop_model(client: redis.Redis, lock: StagingLock) -> int:
    """Delete manifest, tiles and files of the lock's digest, the manifest first.

    By DEL, not UNLINK: the memory is free when this returns. Returns the number of keys.
    """
    exempt = {lock.key.encode(), keys.bad_tiles_key(lock.digest).encode()}
    manifest_key = keys.manifest_key(lock.digest).encode()
    num_dropped = 0
    if client.exists(manifest_key):
        lock.delete([manifest_key])
        num_dropped = 1
    batch: list[bytes] = []
    for key in client.scan_iter(match=keys.model_keys(lock.digest), count=KEYS_AT_ONCE):
        if key in exempt:
            continue
        batch.append(key)
        if len(batch) == KEYS_AT_ONCE:
            lock.delete(batch)
            num_dropped += len(batch)
            batch = []
    if batch:
        lock.delete(batch)
    return num_dropped + len(batch)
