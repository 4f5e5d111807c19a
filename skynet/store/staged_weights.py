"""Reads regions of a staged model's tensors: tiles of this machine's cache, or of Redis.

Holds at most `BATCH_BYTES` beside its results.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from skynet.errors import TileCorrupted, TileMissing
from skynet.planning.ranges import Range
from skynet.store.bad_tiles import tile_error
from skynet.store.manifest import Manifest, StagedTensor, Tile, TileName
from skynet.store.staging import BATCH_BYTES
from skynet.store.tile_cache import TileCache
from skynet.wire import codec, keys
from skynet.wire.tensor_dtypes import travels_as


class StagedWeights:
    """Reads regions of one staged model, tile by tile, from the cache of this machine or Redis.

    fetched_bytes, cached_bytes: read from Redis, and from the cache.
    """

    def __init__(
        self, client: redis.Redis, manifest: Manifest, cache: TileCache | None = None
    ) -> None:
        self.client = client
        self.manifest = manifest
        self.cache = cache
        self.fetched_bytes = 0
        self.cached_bytes = 0

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
        missing = [
            (index, tile)
            for index, tile in wanted
            if not self._from_cache(TileName(name, index), tensor, tile, region, result)
        ]
        if not missing:
            return
        digest = self.manifest.digest
        redis_keys = [keys.tile_key(digest, name, index) for index, _ in missing]
        payloads: list[bytes | None] = self.client.mget(redis_keys)  # type: ignore[assignment]
        for (index, tile), payload in zip(missing, payloads, strict=True):
            array = _check_tile(digest, name, index, tensor, tile, payload)
            if self.cache is not None and array.size:
                self.cache.write(digest, TileName(name, index), tile.checksum, array)
            _copy(array, tensor, tile, region, result)
            self.fetched_bytes += len(payload or b"")

    def _from_cache(
        self,
        name: TileName,
        tensor: StagedTensor,
        tile: Tile,
        region: Range,
        result: npt.NDArray[Any],
    ) -> bool:
        """Read a tile from the cache, in place where the result has all of it in one piece."""
        if self.cache is None:
            return False
        place = _along(tensor.axis, tile.start - region.start, tile.stop - region.start)
        whole = region.start <= tile.start and tile.stop <= region.stop
        array = result[place] if whole else None
        in_place = array is not None and array.flags.c_contiguous
        if array is None or not in_place:
            shape = list(tensor.shape)
            shape[tensor.axis] = tile.stop - tile.start
            array = np.empty(shape, dtype=result.dtype)
        digest = self.manifest.digest
        if not array.size or not self.cache.read(digest, name, tile.checksum, array):
            return False
        if not in_place:
            _copy(array, tensor, tile, region, result)
        self.cached_bytes += array.nbytes
        return True


def _copy(
    array: npt.NDArray[Any],
    tensor: StagedTensor,
    tile: Tile,
    region: Range,
    result: npt.NDArray[Any],
) -> None:
    """Copy what `region` has of a tile to its place in `result`."""
    overlap = Range(tile.start, tile.stop).overlap(region)
    target = _along(tensor.axis, overlap.start - region.start, overlap.stop - region.start)
    result[target] = array[
        _along(tensor.axis, overlap.start - tile.start, overlap.stop - tile.start)
    ]


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
