"""The content of a staging: the tiles of each tensor, and the text files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import resolve_names, staged_tensors
from skynet.checkpoint.model_source import ModelSource
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.planning.ranges import Range
from skynet.request.generation_config import FILE, legacy_file
from skynet.wire.tensor_dtypes import TRAVELS_AS, item_bytes, travels_as

# Bytes that the codec and Redis' string header add to a tile's data. Tiles leave them free: one
# byte above a power of two, jemalloc allocates a quarter more.
TILE_HEADER_BYTES = 64


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to stage: its name in the checkpoint, and the axis along which tiles are cut.

    suppresses: its numbers of -inf suppress tokens.
    """

    source_name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int
    suppresses: bool = False

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * item_bytes(self.dtype)

    @property
    def bytes_per_index(self) -> int:
        return max(1, self.num_bytes // max(1, self.shape[self.axis]))

    def indices_per_tile(self, tile_bytes: int) -> int:
        """Indices that fit into a tile of `tile_bytes` in Redis; at least one."""
        return max(1, (tile_bytes - TILE_HEADER_BYTES) // self.bytes_per_index)

    def num_tiles(self, tile_bytes: int) -> int:
        return -(-self.shape[self.axis] // self.indices_per_tile(tile_bytes))

    def tile_ranges(self, tile_bytes: int) -> Iterator[Range]:
        length, step = self.shape[self.axis], self.indices_per_tile(tile_bytes)
        for start in range(0, length, step):
            yield Range(start, min(start + step, length))


def tensor_plans(checkpoint: ModelSource, arch: Architecture) -> dict[str, TensorPlan]:
    """The plans of all tensors that the model needs; checks shapes and dtypes."""
    names: dict[str, str] = resolve_names(arch, checkpoint.tensors)
    plans, suppressing = {}, suppressing_tensors(arch)
    for tensor in staged_tensors(arch):
        source_name = names[tensor.name]
        info = checkpoint.tensors[source_name]
        if tuple(info.shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"tensor {source_name} has shape {list(info.shape)}, the config says "
                f"{list(tensor.shape)}: config.json and the weights do not belong together"
            )
        if travels_as(info.dtype) is None:
            raise UnsupportedModel(
                f"tensor {source_name} is {info.dtype}; known are {', '.join(TRAVELS_AS)}"
            )
        suppresses = tensor.name in suppressing
        plans[tensor.name] = TensorPlan(
            source_name, tensor.shape, info.dtype, tensor.axis, suppresses
        )
    return plans


def suppressing_tensors(arch: Architecture) -> set[str]:
    """The bias of the head, in which -inf suppresses a token."""
    return {weight.tensor() for weight in arch.weights if weight.role == "head_bias"}


def model_files(checkpoint: ModelSource) -> dict[str, bytes]:
    """The text files to stage, with a generation config from config.json if there is no file."""
    files = checkpoint.text_files()
    legacy = None if FILE in files else legacy_file(checkpoint.config)
    return files if legacy is None else {**files, FILE: legacy}
