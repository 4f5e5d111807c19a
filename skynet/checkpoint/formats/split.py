"""SkyNet's own files of converted models: codes, scales and minimums as tensors of their own.

A matrix NAME is the tensors NAME.codes (int8 for q8, uint8 for q4), NAME.scales and, for q4,
NAME.minimums.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy.typing as npt

from skynet.checkpoint.formats.matrix import Matrix
from skynet.checkpoint.formats.parts import Parts, Tensors, modules
from skynet.wire.quantised import Layout, Quantised

LAYOUTS: dict[str, Layout] = {"int8": "q8", "uint8": "q4"}  # by the dtype of codes


def tensors_of(name: str, matrix: Quantised) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file that hold this matrix."""
    parts = {"codes": matrix.codes, "scales": matrix.scales, "minimums": matrix.minimums}
    return {f"{name}.{part}": array for part, array in parts.items() if array is not None}


def matrices(tensors: Tensors) -> dict[str, Matrix]:
    """The quantised matrices of a checkpoint, by name.

    Raises:
        CheckpointError: tensors that do not belong together.
    """
    found = (_matrix(parts) for parts in modules(tensors, "codes"))
    return {matrix.name: matrix for matrix in found}


def _matrix(parts: Parts) -> Matrix:
    outputs, width = parts.size("codes", 0), parts.size("codes", 1)
    parts.check("codes", (outputs, width), *LAYOUTS)
    layout = LAYOUTS[parts.info("codes").dtype]
    inputs, groups = (width if layout == "q8" else 2 * width), parts.size("scales", 1)
    parts.check("scales", (outputs, groups), "float16", "float32")
    dtype: Any = parts.info("scales").dtype
    if layout == "q4":
        parts.check("minimums", (outputs, groups), dtype)
    name, group = parts.prefix.removesuffix("."), inputs // max(1, groups)
    rows = partial(_rows, parts, layout, group)
    return Matrix(name, (outputs, inputs), layout, group, dtype, rows)


def _rows(parts: Parts, layout: Layout, group: int, start: int, stop: int) -> Quantised:
    codes, scales = (parts.read(part, 0, start, stop) for part in ("codes", "scales"))
    minimums = parts.read("minimums", 0, start, stop) if layout == "q4" else None
    return Quantised(layout, group, codes, scales, minimums)
