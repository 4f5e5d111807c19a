"""Staged weights: the checkpoints in one Redis, and fetching regions of their tensors.

Reads and checks; `skynet/store/staging.py` writes. Holds at most `BATCH_BYTES` beside its results.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import redis

from skynet.errors import NoModel, TileCorrupted, TileMissing
from skynet.planning.ranges import Range
from skynet.store.bad_tiles import tile_error
from skynet.store.manifest import Manifest, StagedTensor, Tile, TileName
from skynet.store.staging import (
    BATCH_BYTES,
    ModelWriter,
    Progress,
    StagingJob,
    Waiting,
    readable_manifest,
)
from skynet.store.staging_lock import LOCK_S
from skynet.wire import codec, keys
from skynet.wire.tensor_dtypes import item_bytes, travels_as


class WeightStore:
    """The staged checkpoints of one Redis.

    lock_s: lifetime of a stager's lock without renewal.
    """

    def __init__(self, client: redis.Redis, lock_s: float = LOCK_S) -> None:
        self.client = client
        self.lock_s = lock_s

    def manifest(self, digest: str) -> Manifest | None:
        """The manifest of this digest, or None if it is not completely staged.

        Raises:
            WireError: the key holds something else, or a manifest of another version.
        """
        text = self.client.get(keys.manifest_key(digest))
        return None if text is None else Manifest.from_json(cast(bytes, text))

    def require_manifest(self, digest: str) -> Manifest:
        """The manifest of this digest.

        Raises:
            NoModel: it is not completely staged.
        """
        manifest = self.manifest(digest)
        if manifest is None:
            raise NoModel(
                f"model {digest[:12]} is not in Redis: stage it again with `skynet split`"
            )
        return manifest

    def is_staged(self, digest: str) -> bool:
        """Whether there is a manifest, without reading it."""
        return bool(self.client.exists(keys.manifest_key(digest)))

    def read_file(self, digest: str, name: str) -> bytes | None:
        """A staged config or tokenizer file."""
        return cast("bytes | None", self.client.get(keys.file_key(digest, name)))

    def read_files(self, manifest: Manifest) -> dict[str, bytes]:
        """All staged files by name."""
        files = {name: self.read_file(manifest.digest, name) for name in manifest.files}
        return {name: data for name, data in files.items() if data is not None}

    def stage(
        self,
        job: StagingJob,
        *,
        progress: Progress | None = None,
        waiting: Waiting | None = None,
    ) -> Manifest:
        """Write all tiles, then the files, then the manifest. A no-op if the digest is staged.

        If another process is staging the digest, waits and uses the result.

        waiting: called again and again during that wait; may raise to give up.

        Raises:
            CheckpointError: a tensor could not be read, or differs from the staged one.
            SkynetError: Redis has too little memory, or may evict keys; or this process was
                suspended for longer than its lock lives.
        """
        manifest = readable_manifest(self.client, job.digest)
        if manifest is None:
            writer = ModelWriter(self.client, job, self.lock_s, progress)
            manifest, written = writer.stage(waiting)
            if written:
                return manifest
        if progress:
            progress(manifest.num_bytes)
        return manifest

    def verify(
        self,
        manifest: Manifest,
        progress: Progress | None = None,
        among: Iterable[TileName] | None = None,
        visit: Callable[[TileName, bytes], None] | None = None,
    ) -> list[TileName]:
        """Read tiles (all, or `among`); return the missing and corrupted ones, in order.

        visit: called with each of the others, and its value in Redis.
        """
        wanted = manifest.tile_names() if among is None else iter(among)
        bad: list[TileName] = []
        for group in _groups(manifest, wanted):
            redis_keys = [tile.key(manifest.digest) for tile in group]
            payloads = cast("list[bytes | None]", self.client.mget(redis_keys))
            for tile, payload in zip(group, payloads, strict=True):
                staged = manifest.tile(tile)
                if payload is None or staged is None or zlib.crc32(payload) != staged.checksum:
                    bad.append(tile)
                elif visit:
                    visit(tile, payload)
            if progress:
                progress(sum(len(payload or b"") for payload in payloads))
        return bad

    def missing_files(self, manifest: Manifest) -> list[str]:
        """Files of the manifest that are not in Redis."""
        return [
            name
            for name in manifest.files
            if not self.client.exists(keys.file_key(manifest.digest, name))
        ]

    def restage_tiles(
        self,
        manifest: Manifest,
        job: StagingJob,
        tiles: Iterable[TileName],
        waiting: Waiting | None = None,
    ) -> int:
        """Rewrite these tiles, and missing files, as they were; returns the number of tiles.

        Raises:
            CheckpointError: the checkpoint is not the one that was staged.
            SkynetError: see `stage`.
        """
        wanted = [tile for tile in tiles if manifest.tile(tile) is not None]
        missing = [name for name in self.missing_files(manifest) if name in job.files]
        if wanted or missing:
            ModelWriter(self.client, job, self.lock_s).repair(manifest, wanted, missing, waiting)
        return len(wanted)


def _groups(manifest: Manifest, tiles: Iterable[TileName]) -> Iterator[list[TileName]]:
    """Groups of consecutive tiles, each of at most BATCH_BYTES or one tile."""
    group: list[TileName] = []
    group_bytes = 0
    for name in tiles:
        num_bytes = _tile_bytes(manifest, name)
        if group and group_bytes + num_bytes > BATCH_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(name)
        group_bytes += num_bytes
    if group:
        yield group


def _tile_bytes(manifest: Manifest, name: TileName) -> int:
    tile = manifest.tile(name)
    if tile is None:
        return 0
    tensor = manifest.tensors[name.tensor]
    whole = int(np.prod(tensor.shape, dtype=np.int64)) * item_bytes(tensor.dtype)
    return whole * (tile.stop - tile.start) // max(1, tensor.shape[tensor.axis])


class StagedWeights:
    """Fetches regions of one staged model, tile by tile."""

    def __init__(self, client: redis.Redis, manifest: Manifest) -> None:
        self.client = client
        self.manifest = manifest
        self.fetched_bytes = 0

    def fetch(self, name: str, region: Range) -> tuple[npt.NDArray[Any], str]:
        """Indices `region` of a tensor along its axis: (array, dtype name). bfloat16 is uint16.

        Reads only the tiles that overlap the region.

        Raises:
            TileMissing, TileCorrupted: the message names the tile.
        """
        tensor = self.manifest.tensors.get(name)
        if tensor is None:
            raise TileMissing(f"tensor {name} was not staged for {self.manifest.name}")
        shape = list(tensor.shape)
        shape[tensor.axis] = region.size
        result = np.empty(shape, dtype=travels_as(tensor.dtype))
        wanted = [
            (index, tile)
            for index, tile in enumerate(tensor.tiles)
            if tile.start < region.stop and tile.stop > region.start
        ]
        per_tile = max(1, result.nbytes // max(1, len(wanted)))
        group = max(1, BATCH_BYTES // per_tile)
        for at in range(0, len(wanted), group):
            self._fetch_tiles(name, tensor, wanted[at : at + group], region, result)
        return result, tensor.dtype

    def _fetch_tiles(
        self,
        name: str,
        tensor: StagedTensor,
        wanted: list[tuple[int, Tile]],
        region: Range,
        result: npt.NDArray[Any],
    ) -> None:
        redis_keys = [keys.tile_key(self.manifest.digest, name, index) for index, _ in wanted]
        payloads: list[bytes | None] = self.client.mget(redis_keys)  # type: ignore[assignment]
        for (index, tile), payload in zip(wanted, payloads, strict=True):
            array = _check_tile(self.manifest.digest, name, index, tensor, tile, payload)
            overlap = Range(tile.start, tile.stop).overlap(region)
            target = _along(tensor.axis, overlap.start - region.start, overlap.stop - region.start)
            result[target] = array[
                _along(tensor.axis, overlap.start - tile.start, overlap.stop - tile.start)
            ]
            self.fetched_bytes += len(payload or b"")


def _check_tile(
    digest: str, name: str, index: int, tensor: StagedTensor, tile: Tile, payload: bytes | None
) -> npt.NDArray[Any]:
    where = f"tile {index} of {name} [{tile.start}, {tile.stop})"
    tile_name = TileName(name, index)
    if payload is None:
        message = f"{where} is not in Redis: stage the model again"
        raise tile_error(TileMissing, message, digest, tile_name)
    if zlib.crc32(payload) != tile.checksum:
        message = f"{where} does not match its checksum: stage the model again"
        raise tile_error(TileCorrupted, message, digest, tile_name)
    array = codec.decode(payload)
    expected = list(tensor.shape)
    expected[tensor.axis] = tile.stop - tile.start
    if not isinstance(array, np.ndarray) or list(array.shape) != expected:
        message = f"{where} has a wrong shape: stage the model again"
        raise tile_error(TileCorrupted, message, digest, tile_name)
    return array


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))
