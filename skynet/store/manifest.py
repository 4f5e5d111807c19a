"""The manifest of a staged checkpoint: its tensors, their tiles and its files. Data only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from skynet.errors import IncompatibleVersion, WireError
from skynet.wire import codec, keys
from skynet.wire.tensor_dtypes import block_format, item_bytes
from skynet.wire.typed_json import Count, parse_object, read_json

FORMAT = 3  # 3: quantised tensors


@dataclass(frozen=True)
class TileName:
    """One tile of a staged model."""

    tensor: str
    index: int

    def key(self, digest: str) -> str:
        return keys.tile_key(digest, self.tensor, self.index)

    def __str__(self) -> str:
        return f"tile {self.index} of {self.tensor}"


@dataclass(frozen=True)
class Tile:
    """Indices [start, stop) of a tensor along its axis, and the CRC-32 of their bytes in Redis."""

    start: int
    stop: int
    checksum: int


@dataclass(frozen=True)
class StagedTensor:
    """One tensor in Redis, cut along `axis` into tiles."""

    shape: tuple[int, ...]
    dtype: str
    axis: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Manifest:
    """A completely staged checkpoint."""

    digest: str
    name: str
    config: dict[str, Any]
    tensors: dict[str, StagedTensor]
    files: tuple[str, ...]
    num_bytes: int

    @property
    def num_tiles(self) -> int:
        return sum(len(tensor.tiles) for tensor in self.tensors.values())

    @property
    def weights(self) -> str:
        """The layouts and dtypes of its matrices, quantised ones first: "q4, bfloat16", say."""
        matrices = {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) > 1}
        formats = {dtype: block_format(dtype) for dtype in matrices}
        layouts = sorted({form.layout for form in formats.values() if form is not None})
        return ", ".join(layouts + sorted(name for name, form in formats.items() if form is None))

    def tile(self, name: TileName) -> Tile | None:
        """The tile of that name, or None."""
        tensor = self.tensors.get(name.tensor)
        if tensor is None or not 0 <= name.index < len(tensor.tiles):
            return None
        return tensor.tiles[name.index]

    def tile_names(self) -> Iterator[TileName]:
        for name, tensor in self.tensors.items():
            yield from (TileName(name, index) for index in range(len(tensor.tiles)))

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
        """The manifest that `to_json` wrote.

        Raises:
            IncompatibleVersion: it has another format.
            WireError: anything else.
        """
        try:
            stored = read_json(_Stored, text, "the manifest")
            tensors = {name: _tensor(name, *packed) for name, packed in stored.tensors.items()}
        except WireError as error:
            _check_format(text)
            raise WireError(f"{error}: stage it again with `skynet split`") from None
        return cls(
            stored.digest,
            stored.name,
            stored.config,
            tensors,
            stored.files,
            stored.num_bytes,
        )


def _check_format(text: bytes) -> None:
    """Raise IncompatibleVersion if a manifest that cannot be read has another format."""
    try:
        written = parse_object(text, "the manifest").get("format")
    except WireError:
        return
    if type(written) is int and written != FORMAT:
        raise IncompatibleVersion(
            f"the staged model has format {written!r:.20}, this SkyNet reads {FORMAT}: "
            "split it again with `skynet split`"
        ) from None


PackedTile = tuple[Count, Count, Count]
PackedTensor = tuple[tuple[Count, ...], str, Count, tuple[PackedTile, ...]]


@dataclass(frozen=True)
class _Stored:
    """A manifest as JSON holds it."""

    format: Literal[3]  # FORMAT
    digest: str
    name: str
    config: dict[str, Any]
    tensors: dict[str, PackedTensor]
    files: tuple[str, ...]
    num_bytes: Count


def _tensor(
    name: str, shape: tuple[int, ...], dtype: str, axis: int, tiles: tuple[PackedTile, ...]
) -> StagedTensor:
    """Raises WireError unless the tiles cover the tensor, each of a size that Redis may hold."""
    size, form = item_bytes(dtype), block_format(dtype)
    is_block = form is None or (len(shape) == 3 and axis < 2 and shape[2] == form.block_bytes)
    if not size or len(shape) > codec.MAX_DIMENSIONS or axis >= len(shape) or not is_block:
        raise WireError(f"tensor {name!r:.80}: {dtype!r:.20} {shape} cut along axis {axis}")
    row_bytes = math.prod(shape[:axis]) * math.prod(shape[axis + 1 :]) * size
    position = 0
    for start, stop, _ in tiles:
        if start != position or stop < start or (stop - start) * row_bytes > codec.MAX_ARRAY_BYTES:
            raise WireError(f"tensor {name!r:.80}: no tile may be [{start}, {stop})")
        position = stop
    if position != shape[axis]:
        raise WireError(f"tensor {name!r:.80}: its tiles end at {position} of {shape[axis]}")
    return StagedTensor(shape, dtype, axis, tuple(Tile(*tile) for tile in tiles))
