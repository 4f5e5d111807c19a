"""The manifest of a staged checkpoint: its tensors, their tiles and its files. Data only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from skynet.errors import IncompatibleVersion
from skynet.wire import keys

FORMAT = 2  # 2: the tokenizer as Transformers loads it
TRAVELS_AS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


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
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise IncompatibleVersion(
                f"the staged model has format {data.get('format')}, this SkyNet reads {FORMAT}: "
                "remove it with `skynet models remove --force` and split it again"
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
