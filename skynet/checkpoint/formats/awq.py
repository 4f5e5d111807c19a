"""AWQ, version GEMM: codes packed along the outputs, with scales and zero points of input groups.

The layout of AutoAWQ: qweight int32 (in, out / 8), qzeros int32 (groups, out / 8), scales
(groups, out). The eight codes of a word are interleaved.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.formats.matrix import Matrix, with_zero_points
from skynet.checkpoint.formats.parts import (
    FLOATS,
    Parts,
    Settings,
    Tensors,
    group_size,
    modules,
    require,
    unpacked,
)
from skynet.wire.quantised import Quantised

PER_WORD = 8
PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where in a word the code of each output is


def matrices(settings: Settings, tensors: Tensors) -> dict[str, Matrix]:
    """The quantised matrices of a checkpoint, by name.

    Raises:
        UnsupportedModel: a setting that is not supported.
        CheckpointError: tensors that do not belong together.
    """
    require(settings, "bits", 4, default=4)
    require({"version": str(settings.get("version", "gemm")).lower()}, "version", "gemm")
    require(settings, "zero_point", True, default=True)
    return {parts.name: _matrix(parts, settings) for parts in modules(tensors, "qweight")}


def _matrix(parts: Parts, settings: Settings) -> Matrix:
    inputs, words = parts.size("qweight", 0), parts.size("qweight", 1)
    outputs, group = words * PER_WORD, group_size(settings, inputs)
    groups = -(-inputs // group)
    parts.check("qweight", (inputs, words), "int32")
    parts.check("qzeros", (groups, words), "int32")
    parts.check("scales", (groups, outputs), *FLOATS)
    # Scale x zero point has more digits than float16.
    return Matrix(parts.name, (outputs, inputs), "q4", group, "float32", partial(_rows, parts))


def _rows(parts: Parts, start: int, stop: int) -> Quantised:
    codes = _codes(parts, "qweight", start, stop)
    scales = parts.read("scales", 1, start, stop).T
    return with_zero_points(codes, scales, _codes(parts, "qzeros", start, stop), "float32")


def _codes(parts: Parts, part: str, start: int, stop: int) -> npt.NDArray[Any]:
    """(outputs [start, stop), inputs or groups)"""
    first, last = start // PER_WORD, -(-stop // PER_WORD)
    words = parts.read(part, 1, first, last)
    codes = unpacked(words, 4).reshape(len(words), -1, PER_WORD)[:, :, PLACES]
    skipped = start - first * PER_WORD
    return codes.reshape(len(words), -1)[:, skipped : skipped + stop - start].T
