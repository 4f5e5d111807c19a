"""Staged weights: what a Redis holds of checkpoints, and how a region of a tensor is fetched.

Owns reading and checking; `skynet/store/staging.py` writes. Does not know what a tensor is for, nor
who computes with it. Neither side holds more than `BATCH_BYTES` beyond what it keeps.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import redis

from skynet.checkpoint.tensor_plans import ITEM_BYTES, TensorPlan
from skynet.errors import NoModel, TileCorrupted, TileMissing
from skynet.planning.ranges import Range
from skynet.store.bad_tiles import push_bad_tile, report_bad_tile, tile_error
from skynet.store.manifest import TRAVELS_AS, Manifest, StagedTensor, Tile, TileName
from skynet.store.staging import BATCH_BYTES, Progress, Stage, TensorSource, Waiting
from skynet.store.staging_lock import LOCK_S
from skynet.wire import codec, keys

__all__ = [
    "BATCH_BYTES",
    "ITEM_BYTES",
    "TRAVELS_AS",
    "Manifest",
    "Progress",
    "StagedTensor",
    "StagedWeights",
    "TensorPlan",
    "TensorSource",
    "Tile",
    "TileName",
    "WeightStore",
    "push_bad_tile",
    "report_bad_tile",
]


class WeightStore:
    """The staged checkpoints of one Redis.

    lock_s: how long a stager's lock outlives it.
    """

    def __init__(self, client: redis.Redis, lock_s: float = LOCK_S) -> None:
        self.client = client
        self.lock_s = lock_s

    def manifest(self, digest: str) -> Manifest | None:
        """What was staged under this digest, or None: nothing, or not to the end."""
        text = self.client.get(keys.manifest_key(digest))
        return None if text is None else Manifest.from_json(cast(bytes, text))

    def require_manifest(self, digest: str) -> Manifest:
        """The manifest, or NoModel."""
        manifest = self.manifest(digest)
        if manifest is None:
            raise NoModel(
                f"model {digest[:12]} is not in Redis any more: stage it again with `skynet split`"
            )
        return manifest

    def is_staged(self, digest: str) -> bool:
        """Is there a manifest? Reads nothing."""
        return bool(self.client.exists(keys.manifest_key(digest)))

    def read_file(self, digest: str, name: str) -> bytes | None:
        """A staged config or tokenizer file."""
        return cast("bytes | None", self.client.get(keys.file_key(digest, name)))

    def read_files(self, manifest: Manifest) -> dict[str, bytes]:
        """All staged files by name."""
        found = {name: self.read_file(manifest.digest, name) for name in manifest.files}
        return {name: data for name, data in found.items() if data is not None}

    def stage(
        self,
        digest: str,
        name: str,
        config: dict[str, Any],
        tensors: Mapping[str, TensorPlan],
        files: Mapping[str, bytes],
        source: TensorSource,
        *,
        tile_bytes: int,
        progress: Progress | None = None,
        waiting: Waiting | None = None,
        repair: bool = False,
    ) -> Manifest:
        """Write all tiles, then the files, then the manifest. A no-op if the digest is there.

        While another process stages the same digest this one waits, and uses what that has staged.

        waiting: called again and again during that wait; may raise to give up.
        repair: if the digest is there, check all of it and write again what is missing or bad.

        Raises:
            CheckpointError: a tensor could not be read, or is not what was staged.
            SkynetError: Redis has too little memory, or may evict what it holds; or this process
                was stopped for so long that its lock ran out.
        """
        done = self.manifest(digest)
        if done is None:
            work = Stage(self.client, digest, source, progress, self.lock_s)
            done, fresh = work.run(name, config, tensors, files, tile_bytes, waiting)
            if fresh:
                return done
        if repair:
            self.restage_tiles(done, tensors, files, source, self.verify(done), waiting)
        if progress:
            progress(done.num_bytes)
        return done

    def verify(
        self,
        manifest: Manifest,
        progress: Progress | None = None,
        among: Iterable[TileName] | None = None,
    ) -> list[TileName]:
        """Read tiles (all, or `among`) and return those that are missing or corrupted, in order."""
        wanted = manifest.tile_names() if among is None else iter(among)
        bad: list[TileName] = []
        for group in _groups(manifest, wanted):
            redis_keys = [tile.key(manifest.digest) for tile in group]
            payloads = cast("list[bytes | None]", self.client.mget(redis_keys))
            for tile, payload in zip(group, payloads, strict=True):
                known = manifest.tile(tile)
                if payload is None or known is None or zlib.crc32(payload) != known.checksum:
                    bad.append(tile)
            if progress:
                progress(sum(len(payload or b"") for payload in payloads))
        return bad

    def missing_files(self, manifest: Manifest) -> list[str]:
        """Files that the manifest names and that are gone."""
        return [
            name
            for name in manifest.files
            if not self.client.exists(keys.file_key(manifest.digest, name))
        ]

    def restage_tiles(
        self,
        manifest: Manifest,
        tensors: Mapping[str, TensorPlan],
        files: Mapping[str, bytes],
        source: TensorSource,
        tiles: Iterable[TileName],
        waiting: Waiting | None = None,
    ) -> int:
        """Write these tiles, and files that are missing, again, as they were; how many tiles.

        Raises:
            CheckpointError: the checkpoint is not the one that was staged.
            SkynetError: as of `stage`.
        """
        wanted = [tile for tile in tiles if manifest.tile(tile) is not None]
        missing = {name: files[name] for name in self.missing_files(manifest) if name in files}
        if wanted or missing:
            work = Stage(self.client, manifest.digest, source, None, self.lock_s)
            work.repair(manifest, tensors, wanted, missing, waiting)
        return len(wanted)


def _groups(manifest: Manifest, tiles: Iterable[TileName]) -> Iterator[list[TileName]]:
    """Runs of tiles of at most BATCH_BYTES together."""
    group: list[TileName] = []
    waiting = 0
    for name in tiles:
        num_bytes = _tile_bytes(manifest, name)
        if group and waiting + num_bytes > BATCH_BYTES:
            yield group
            group, waiting = [], 0
        group.append(name)
        waiting += num_bytes
    if group:
        yield group


def _tile_bytes(manifest: Manifest, name: TileName) -> int:
    tile = manifest.tile(name)
    if tile is None:
        return 0
    tensor = manifest.tensors[name.tensor]
    whole = int(np.prod(tensor.shape, dtype=np.int64)) * ITEM_BYTES[tensor.dtype]
    return whole * (tile.stop - tile.start) // max(1, tensor.shape[tensor.axis])


class StagedWeights:
    """Fetches regions of one staged model, tile by tile."""

    def __init__(self, client: redis.Redis, manifest: Manifest) -> None:
        self.client = client
        self.manifest = manifest
        self.fetched_bytes = 0

    def fetch(self, name: str, region: Range) -> tuple[npt.NDArray[Any], str]:
        """Indices `region` of a tensor along its axis: (array, dtype name). bfloat16 is uint16.

        Only the tiles that the region touches are read.

        Raises:
            TileMissing, TileCorrupted: names the tile.
        """
        tensor = self.manifest.tensors.get(name)
        if tensor is None:
            raise TileMissing(f"tensor {name} was not staged for {self.manifest.name}")
        shape = list(tensor.shape)
        shape[tensor.axis] = region.size
        result = np.empty(shape, dtype=TRAVELS_AS[tensor.dtype])
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
            both = Range(tile.start, tile.stop).overlap(region)
            target = _along(tensor.axis, both.start - region.start, both.stop - region.start)
            result[target] = array[
                _along(tensor.axis, both.start - tile.start, both.stop - tile.start)
            ]
            self.fetched_bytes += len(payload or b"")


def _check_tile(
    digest: str, name: str, index: int, tensor: StagedTensor, tile: Tile, payload: bytes | None
) -> npt.NDArray[Any]:
    where = f"tile {index} of {name} [{tile.start}, {tile.stop})"
    own = TileName(name, index)
    if payload is None:
        message = f"{where} is not in Redis any more: stage the model again"
        raise tile_error(TileMissing, message, digest, own)
    if zlib.crc32(payload) != tile.checksum:
        message = f"{where} does not match its checksum: stage the model again"
        raise tile_error(TileCorrupted, message, digest, own)
    array = codec.decode(payload)
    expected = list(tensor.shape)
    expected[tensor.axis] = tile.stop - tile.start
    if not isinstance(array, np.ndarray) or list(array.shape) != expected:
        message = f"{where} has a wrong shape: stage the model again"
        raise tile_error(TileCorrupted, message, digest, own)
    return array


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))
