"""Writing a checkpoint's tiles into Redis so that it is there wholly or not at all.

Tiles and files first, the manifest last, everything under the staging lock. Never holds more than
`BATCH_BYTES` and one tile.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import redis

from skynet.checkpoint.tensor_plans import TensorPlan
from skynet.errors import CheckpointError, SkynetError
from skynet.planning.ranges import Range
from skynet.store.connection import server_info
from skynet.store.manifest import TRAVELS_AS, Manifest, StagedTensor, Tile, TileName
from skynet.store.room import check_room, needed_bytes, room_message
from skynet.store.staging_lock import StagingLock
from skynet.wire import codec, keys

logger = logging.getLogger(__name__)

BATCH_BYTES = 8 * 2**20
KEYS_AT_ONCE = 1000

Progress = Callable[[int], None]  # called with the bytes just done
Waiting = Callable[[], None]


class TensorSource(Protocol):
    """A checkpoint, as far as staging needs one."""

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]: ...


class Stage:
    """One staging, or one repair, of one digest."""

    def __init__(
        self,
        client: redis.Redis,
        digest: str,
        source: TensorSource,
        progress: Progress | None,
        lock_s: float,
    ) -> None:
        self.client = client
        self.digest = digest
        self.source = source
        self.progress = progress
        self.lock = StagingLock(client, digest, lock_s)
        self._waiting: dict[str, bytes] = {}
        self._waiting_bytes = 0

    def run(
        self,
        name: str,
        config: dict[str, Any],
        tensors: Mapping[str, TensorPlan],
        files: Mapping[str, bytes],
        tile_bytes: int,
        waiting: Waiting | None,
    ) -> tuple[Manifest, bool]:
        """Stage all of it. The manifest, and whether it was this process that staged it."""
        with self.lock.held(waiting):
            text = self.client.get(keys.manifest_key(self.digest))
            if text is not None:  # another staged it while this one waited
                return Manifest.from_json(cast(bytes, text)), False
            drop_model(self.client, self.lock)  # leftovers, perhaps cut into other tiles
            check_room(self.client, tensors.values(), files, tile_bytes)
            try:
                staged = self._write_all(tensors, files, tile_bytes)
                num_bytes = sum(plan.num_bytes for plan in tensors.values())
                manifest = Manifest(self.digest, name, config, staged, tuple(files), num_bytes)
                self.lock.write_manifest(manifest.to_json())
            except redis.exceptions.OutOfMemoryError as error:
                self._waiting.clear()
                drop_model(self.client, self.lock)
                allocator = str(server_info(self.client, "memory").get("mem_allocator", ""))
                needed = needed_bytes(tensors.values(), files, tile_bytes, allocator)
                raise SkynetError(room_message(self.client, needed)) from error
            except CheckpointError:
                drop_model(self.client, self.lock)
                raise
        return manifest, True

    def repair(
        self,
        manifest: Manifest,
        tensors: Mapping[str, TensorPlan],
        tiles: Iterable[TileName],
        files: Mapping[str, bytes],
        waiting: Waiting | None,
    ) -> None:
        """Write these tiles and files again, byte for byte as they were."""
        with self.lock.held(waiting):
            text = self.client.get(keys.manifest_key(self.digest))
            if text is None or Manifest.from_json(cast(bytes, text)) != manifest:
                raise SkynetError(
                    f"model {self.digest[:12]} was removed or staged anew while it was to be "
                    "repaired: try again"
                )
            for tile in tiles:
                self._restage(manifest, tensors, tile)
            for name, data in files.items():
                self._add(keys.file_key(self.digest, name), data)
            self._flush()

    def _write_all(
        self, tensors: Mapping[str, TensorPlan], files: Mapping[str, bytes], tile_bytes: int
    ) -> dict[str, StagedTensor]:
        staged: dict[str, StagedTensor] = {}
        for key, plan in tensors.items():
            tiles = [
                self._stage_tile(TileName(key, index), plan, part)
                for index, part in enumerate(plan.tile_ranges(tile_bytes))
            ]
            staged[key] = StagedTensor(plan.shape, plan.dtype, plan.axis, tuple(tiles))
        for name, data in files.items():
            self._add(keys.file_key(self.digest, name), data)
        self._flush()
        return staged

    def _stage_tile(self, name: TileName, plan: TensorPlan, part: Range) -> Tile:
        payload = self._read(plan, part)
        self._add(name.key(self.digest), payload)
        return Tile(part.start, part.stop, zlib.crc32(payload))

    def _restage(
        self, manifest: Manifest, tensors: Mapping[str, TensorPlan], name: TileName
    ) -> None:
        tile, plan = manifest.tile(name), tensors.get(name.tensor)
        if tile is None or plan is None:
            raise CheckpointError(f"the checkpoint has no {name} of {manifest.name}")
        payload = self._read(plan, Range(tile.start, tile.stop))
        if zlib.crc32(payload) != tile.checksum:
            raise CheckpointError(
                f"{name} of {manifest.name} reads differently from what was staged: the "
                "checkpoint's files have changed; split the model again"
            )
        self._add(name.key(self.digest), payload)

    def _read(self, plan: TensorPlan, part: Range) -> bytes:
        """A tile's bytes as they lie in Redis."""
        self.lock.keep()
        array = self.source.read(plan.source_name, plan.axis, part.start, part.stop)
        expected = list(plan.shape)
        expected[plan.axis] = part.size
        if list(array.shape) != expected or array.dtype.str != TRAVELS_AS[plan.dtype]:
            raise CheckpointError(
                f"tensor {plan.source_name} [{part.start}, {part.stop}) was read as "
                f"{array.dtype}{list(array.shape)}, expected {plan.dtype}{expected}"
            )
        return codec.encode(np.ascontiguousarray(array))

    def _add(self, key: str, payload: bytes) -> None:
        if self._waiting and self._waiting_bytes + len(payload) > BATCH_BYTES:
            self._flush()
        self._waiting[key] = payload
        self._waiting_bytes += len(payload)

    def _flush(self) -> None:
        if not self._waiting:
            return
        self.lock.write(self._waiting)
        if self.progress:
            self.progress(self._waiting_bytes)
        self._waiting.clear()
        self._waiting_bytes = 0


def drop_model(client: redis.Redis, lock: StagingLock) -> int:
    """Free manifest, tiles and files of the lock's digest; how many keys. The manifest goes first.

    By DEL, not UNLINK: the memory is to be free when this returns.
    """
    kept = {lock.key.encode(), keys.bad_tiles_key(lock.digest).encode()}
    manifest_key = keys.manifest_key(lock.digest).encode()
    dropped = 0
    if client.exists(manifest_key):
        lock.delete([manifest_key])
        dropped = 1
    found: list[bytes] = []
    for key in client.scan_iter(match=keys.model_keys(lock.digest), count=KEYS_AT_ONCE):
        if key in kept:
            continue
        found.append(key)
        if len(found) == KEYS_AT_ONCE:
            lock.delete(found)
            dropped += len(found)
            found = []
    if found:
        lock.delete(found)
    return dropped + len(found)
