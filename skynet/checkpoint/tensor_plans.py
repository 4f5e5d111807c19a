"""What a staging writes: how each tensor is cut into tiles, and the text files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import resolve_names, staged_tensors
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.planning.ranges import Range
from skynet.request.generation_config import FILE, legacy_file

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# What the codec and Redis' string header add to a tile's data. Left free in each tile: one byte
# above a power of two, jemalloc takes a quarter more.
TILE_HEADER_BYTES = 64


@dataclass(frozen=True)
class TensorPlan:
    """What to stage of one tensor: its name in the source, and how it is cut."""

    source_name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]

    @property
    def bytes_per_index(self) -> int:
        return max(1, self.num_bytes // max(1, self.shape[self.axis]))

    def indices_per_tile(self, tile_bytes: int) -> int:
        """How many indices fit into a tile that takes `tile_bytes` in Redis; at least one."""
        return max(1, (tile_bytes - TILE_HEADER_BYTES) // self.bytes_per_index)

    def num_tiles(self, tile_bytes: int) -> int:
        return -(-self.shape[self.axis] // self.indices_per_tile(tile_bytes))

    def tile_ranges(self, tile_bytes: int) -> Iterator[Range]:
        length, step = self.shape[self.axis], self.indices_per_tile(tile_bytes)
        for start in range(0, length, step):
            yield Range(start, min(start + step, length))


def tensor_plans(checkpoint: Checkpoint, arch: Architecture) -> dict[str, TensorPlan]:
    """How each tensor that the model needs is cut; checks shapes and dtypes."""
    names: dict[str, str] = resolve_names(arch, checkpoint.tensors)
    plans = {}
    for wanted in staged_tensors(arch):
        source_name = names[wanted.name]
        found: Any = checkpoint.tensors[source_name]
        if tuple(found.shape) != tuple(wanted.shape):
            raise CheckpointError(
                f"tensor {source_name} has shape {list(found.shape)}, the config says "
                f"{list(wanted.shape)}: config.json and the weights do not belong together"
            )
        if found.dtype not in ITEM_BYTES:
            raise UnsupportedModel(
                f"tensor {source_name} is {found.dtype}; known are {', '.join(ITEM_BYTES)}. "
                "Quantised checkpoints are not read"
            )
        plans[wanted.name] = TensorPlan(source_name, wanted.shape, found.dtype, wanted.axis)
    return plans


def model_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The text files to stage; without a generation config, what config.json says instead."""
    files = checkpoint.text_files()
    legacy = None if FILE in files else legacy_file(checkpoint.config)
    return files if legacy is None else {**files, FILE: legacy}
