"""FP8 (e4m3) weights with scales of blocks, of outputs, or of the matrix; rounded to q8.

Of `quant_method` "fp8" (DeepSeek's and Qwen's): weight (out, in) and weight_scale_inv, a number for
each block. Of "fbgemm_fp8": weight_scale (out, 1).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.formats.matrix import Matrix, rounded
from skynet.checkpoint.formats.parts import FLOATS, Parts, Settings, Tensors, modules, require
from skynet.errors import CheckpointError

DTYPE = "float8_e4m3"
Block = tuple[int, int]  # outputs, inputs


@cache
def _table() -> npt.NDArray[np.float32]:
    """The numbers of all 256 bytes: sign, 4 bits of exponent, 3 of mantissa; no infinities."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    numbers = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    numbers = np.where((byte & 127) == 127, np.nan, numbers)
    return np.where(byte & 128, -numbers, numbers).astype(np.float32)


def matrices(settings: Settings, tensors: Tensors) -> dict[str, Matrix]:
    """The quantised matrices of a checkpoint, by name.

    Raises:
        UnsupportedModel: a setting that is not supported.
        CheckpointError: tensors that do not belong together.
    """
    require(settings, "fmt", "e4m3", default="e4m3")
    size = settings.get("weight_block_size")
    found = {}
    for part in ("weight_scale_inv", "weight_scale"):
        for parts in modules(tensors, part):
            found[parts.name] = scaled(parts, part, _block(size, parts.info("weight").shape))
    return found


def scaled(parts: Parts, part: str, block: Block | None = None) -> Matrix:
    """A matrix of fp8 numbers. part: its scales; of these blocks, or else of outputs or of all.

    Raises:
        CheckpointError: tensors that do not belong together.
    """
    outputs, inputs = parts.size("weight", 0), parts.size("weight", 1)
    parts.check("weight", (outputs, inputs), DTYPE)
    scales = parts.info(part).shape
    if block is None:
        block = (1 if scales in ((outputs, 1), (outputs,)) else max(1, outputs), max(1, inputs))
    grid = (-(-outputs // block[0]), -(-inputs // block[1]))
    known: list[tuple[int, ...]] = [grid, grid[:1]] if grid[1] == 1 else [grid]
    known += [()] if grid == (1, 1) else []
    parts.check(part, scales if scales in known else grid, *FLOATS)
    numbers = partial(_numbers, parts, part, block)
    return rounded(parts.name, (outputs, inputs), "FP8", numbers)


def _block(size: Any, shape: tuple[int, ...]) -> Block | None:
    if size is None:
        return None
    if not isinstance(size, list) or [type(each) for each in size] != [int, int] or min(size) < 1:
        raise CheckpointError(
            f"quantization_config: weight_block_size {size!r:.40}, expected two positive integers"
        )
    return size[0], size[1]


def _numbers(
    parts: Parts, part: str, block: Block, start: int, stop: int
) -> npt.NDArray[np.float32]:
    numbers = _table()[parts.read("weight", 0, start, stop).view(np.uint8)]
    shape = parts.info("weight").shape
    grid = parts.read(part).reshape(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    scales = grid.astype(np.float32)[np.arange(start, stop) // block[0]]
    for at in range(scales.shape[1]):
        numbers[:, at * block[1] : (at + 1) * block[1]] *= scales[:, at, None]
    return numbers
