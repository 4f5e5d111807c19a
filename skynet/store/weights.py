"""Staged weights: tiles with checksums in Redis, one manifest written last.

Owns how a checkpoint lies in Redis and how a region of a tensor is fetched again. Does not know
what a tensor is for, nor who computes with it. Neither side holds more than `BATCH_BYTES` beyond
what it keeps.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import redis

from skynet import names, wire
from skynet.errors import CheckpointError, NoModel, SkynetError, TileCorrupted, TileMissing
from skynet.planning.ranges import Range
from skynet.store.connection import server_info

FORMAT = 1
BATCH_BYTES = 8 * 2**20
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TRAVELS_AS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}

Progress = Callable[[int], None]  # called with the bytes just done


class TensorSource(Protocol):
    """A checkpoint, as far as staging needs one."""

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Tile:
    """Indices [start, stop) of a tensor along its axis, and the CRC-32 of their bytes in Redis."""

    start: int
    stop: int
    checksum: int


@dataclass(frozen=True)
class StagedTensor:
    """One tensor as it lies in Redis: cut along `axis` into tiles."""

    shape: tuple[int, ...]
    dtype: str
    axis: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything that was staged of one checkpoint."""

    digest: str
    name: str
    config: dict[str, Any]
    tensors: dict[str, StagedTensor]
    files: tuple[str, ...]
    num_bytes: int

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "digest": self.digest,
                "name": self.name,
                "config": self.config,
                "files": self.files,
                "num_bytes": self.num_bytes,
                "tensors": {
                    name: [
                        tensor.shape,
                        tensor.dtype,
                        tensor.axis,
                        [[tile.start, tile.stop, tile.checksum] for tile in tensor.tiles],
                    ]
                    for name, tensor in self.tensors.items()
                },
            }
        )

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise SkynetError(
                f"the staged model is of format {data.get('format')}, this SkyNet reads {FORMAT}: "
                "stage it again with `skynet split`"
            )
        tensors = {
            name: StagedTensor(tuple(shape), dtype, axis, tuple(Tile(*tile) for tile in tiles))
            for name, (shape, dtype, axis, tiles) in data["tensors"].items()
        }
        return cls(
            data["digest"],
            data["name"],
            data["config"],
            tensors,
            tuple(data["files"]),
            data["num_bytes"],
        )


@dataclass(frozen=True)
class TensorPlan:
    """What to stage of one tensor: its name in the source, and how it is cut."""

    source_name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * ITEM_BYTES[self.dtype]

    def tile_ranges(self, tile_bytes: int) -> Iterator[Range]:
        length = self.shape[self.axis]
        per_index = max(1, self.num_bytes // max(1, length))
        step = max(1, tile_bytes // per_index)
        for start in range(0, length, step):
            yield Range(start, min(start + step, length))


class WeightStore:
    """The staged checkpoints of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def manifest(self, digest: str) -> Manifest | None:
        """What was staged under this digest, or None: nothing, or not to the end."""
        text = self.client.get(names.manifest_key(digest))
        return None if text is None else Manifest.from_json(text)  # type: ignore[arg-type]

    def require_manifest(self, digest: str) -> Manifest:
        """The manifest, or NoModel."""
        manifest = self.manifest(digest)
        if manifest is None:
            raise NoModel(
                f"model {digest[:12]} is not in Redis any more: stage it again with `skynet split`"
            )
        return manifest

    def read_file(self, digest: str, name: str) -> bytes | None:
        """A staged config or tokenizer file."""
        return self.client.get(names.file_key(digest, name))  # type: ignore[return-value]

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
    ) -> Manifest:
        """Write all tiles, then the files, then the manifest. A no-op if the digest is there.

        Raises:
            CheckpointError: a tensor could not be read.
            SkynetError: Redis has too little memory, or may evict what it holds.
        """
        num_bytes = sum(plan.num_bytes for plan in tensors.values())
        done = self.manifest(digest)
        if done is not None:
            if progress:
                progress(num_bytes)
            return done
        self._check_room(num_bytes)
        staged: dict[str, StagedTensor] = {}
        batch = _Batch(self.client, progress)
        try:
            for key, plan in tensors.items():
                tiles = [
                    self._stage_tile(digest, key, index, plan, part, source, batch)
                    for index, part in enumerate(plan.tile_ranges(tile_bytes))
                ]
                staged[key] = StagedTensor(plan.shape, plan.dtype, plan.axis, tuple(tiles))
            batch.flush()
            for file_name, data in files.items():
                self.client.set(names.file_key(digest, file_name), data)
            manifest = Manifest(digest, name, config, staged, tuple(files), num_bytes)
            self.client.set(names.manifest_key(digest), manifest.to_json())
        except redis.exceptions.OutOfMemoryError as error:
            self._drop(digest)
            raise SkynetError(self._room_message(num_bytes)) from error
        return manifest

    def _stage_tile(
        self,
        digest: str,
        key: str,
        index: int,
        plan: TensorPlan,
        part: Range,
        source: TensorSource,
        batch: _Batch,
    ) -> Tile:
        array = source.read(plan.source_name, plan.axis, part.start, part.stop)
        expected = list(plan.shape)
        expected[plan.axis] = part.size
        if list(array.shape) != expected or array.dtype.str != TRAVELS_AS[plan.dtype]:
            raise CheckpointError(
                f"tensor {plan.source_name} [{part.start}, {part.stop}) was read as "
                f"{array.dtype}{list(array.shape)}, expected {plan.dtype}{expected}"
            )
        payload = wire.encode(array)
        batch.add(names.tile_key(digest, key, index), payload)
        return Tile(part.start, part.stop, zlib.crc32(payload))

    def _check_room(self, num_bytes: int) -> None:
        memory = server_info(self.client, "memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        limit = int(memory.get("maxmemory", 0))
        if limit and policy != "noeviction":
            raise SkynetError(
                f"Redis evicts keys when it is full (maxmemory-policy {policy}), which would lose "
                "weights and queues without a word: set maxmemory-policy noeviction"
            )
        if limit and int(memory.get("used_memory", 0)) + num_bytes > limit:
            raise SkynetError(self._room_message(num_bytes))

    def _room_message(self, num_bytes: int) -> str:
        memory = server_info(self.client, "memory")
        limit, used = int(memory.get("maxmemory", 0)), int(memory.get("used_memory", 0))
        return (
            f"Redis has too little memory to stage this model: it needs {num_bytes / 2**20:.0f} "
            f"MiB, {max(0, limit - used) / 2**20:.0f} MiB are free of maxmemory "
            f"{limit / 2**20:.0f} MiB. Nothing was staged; raise maxmemory"
        )

    def _drop(self, digest: str) -> None:
        """Free the tiles and files of a staging that did not end."""
        for pattern in (names.tile_key(digest, "*", 0)[:-2], names.file_key(digest, "*")):
            for key in self.client.scan_iter(match=pattern, count=1000):
                self.client.unlink(key)


class _Batch:
    """SETs sent in pipelines of at most BATCH_BYTES."""

    def __init__(self, client: redis.Redis, progress: Progress | None) -> None:
        self.pipeline = client.pipeline(transaction=False)
        self.progress = progress
        self.waiting = 0

    def add(self, key: str, payload: bytes) -> None:
        self.pipeline.set(key, payload)
        self.waiting += len(payload)
        if self.waiting >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        self.pipeline.execute()
        if self.progress and self.waiting:
            self.progress(self.waiting)
        self.waiting = 0


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
        keys = [names.tile_key(self.manifest.digest, name, index) for index, _ in wanted]
        payloads: list[bytes | None] = self.client.mget(keys)  # type: ignore[assignment]
        for (index, tile), payload in zip(wanted, payloads, strict=True):
            array = _check_tile(name, index, tensor, tile, payload)
            both = Range(tile.start, tile.stop).overlap(region)
            target = _along(tensor.axis, both.start - region.start, both.stop - region.start)
            result[target] = array[
                _along(tensor.axis, both.start - tile.start, both.stop - tile.start)
            ]
            self.fetched_bytes += len(payload or b"")


def _check_tile(
    name: str, index: int, tensor: StagedTensor, tile: Tile, payload: bytes | None
) -> npt.NDArray[Any]:
    where = f"tile {index} of {name} [{tile.start}, {tile.stop})"
    if payload is None:
        raise TileMissing(f"{where} is not in Redis any more: stage the model again")
    if zlib.crc32(payload) != tile.checksum:
        raise TileCorrupted(f"{where} does not match its checksum: stage the model again")
    array = wire.decode(payload)
    expected = list(tensor.shape)
    expected[tensor.axis] = tile.stop - tile.start
    if not isinstance(array, np.ndarray) or list(array.shape) != expected:
        raise TileCorrupted(f"{where} has a wrong shape: stage the model again")
    return array


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))
