"""SkyNet's own files of converted models: codes, scales and minimums as tensors of their own.

A matrix NAME is the tensors NAME.codes (int8 for q8, uint8 for q4), NAME.scales and, for q4,
NAME.minimums.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.formats.matrix import Matrix
from skynet.checkpoint.formats.parts import Parts, Tensors, modules
from skynet.checkpoint.safetensors_file import INDEX_FILE, SINGLE_FILE
from skynet.wire.quantised import Layout, Quantised

FILE_BYTES = 2**30
LAYOUTS: dict[str, Layout] = {"int8": "q8", "uint8": "q4"}  # by the dtype of codes


def write_model(tensors: Iterable[tuple[str, Any]], directory: Path) -> None:
    """Write tensors and quantised matrices by name, to one file or to several of `FILE_BYTES`.

    bfloat16 numbers are given as their uint16 bits.
    """
    places: dict[str, str] = {}
    held: dict[str, npt.NDArray[Any]] = {}
    for name, value in tensors:
        held |= tensors_of(name, value) if isinstance(value, Quantised) else {name: value}
        if sum(array.nbytes for array in held.values()) >= FILE_BYTES:
            file_name = f"model-{len(set(places.values())) + 1:05}.safetensors"
            places |= _write_file(held, directory / file_name)
            held = {}
    if not places:
        _write_file(held, directory / SINGLE_FILE)
        return
    places |= _write_file(held, directory / "model-last.safetensors")
    index = {"metadata": {}, "weight_map": places}
    (directory / INDEX_FILE).write_text(json.dumps(index))


def _write_file(tensors: Mapping[str, npt.NDArray[Any]], file: Path) -> dict[str, str]:
    """Returns the file's name for each tensor."""
    from safetensors.torch import save_file  # numpy has no bfloat16

    save_file({name: _to_torch(array) for name, array in tensors.items()}, file)
    return dict.fromkeys(tensors, file.name)


def tensors_of(name: str, matrix: Quantised) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file that hold this matrix."""
    parts = {"codes": matrix.codes, "scales": matrix.scales, "minimums": matrix.minimums}
    return {f"{name}.{part}": array for part, array in parts.items() if array is not None}


def _to_torch(array: npt.NDArray[Any]) -> Any:
    import torch

    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def matrices(tensors: Tensors) -> dict[str, Matrix]:
    """The quantised matrices of a checkpoint, by name.

    Raises:
        CheckpointError: tensors that do not belong together.
    """
    found = (_matrix(parts) for parts in modules(tensors, "codes") if parts.has("scales"))
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
