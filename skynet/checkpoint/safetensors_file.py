"""Reads safetensors files without a framework: the header, then any region of a tensor.

The safetensors library reads bfloat16 with torch only, and importing torch costs a stager seconds.
The format is a JSON header before little-endian bytes: this module parses the header, numpy reads
the bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # which tensor is in which file
MAX_HEADER_BYTES = 100_000_000  # the format's limit
COMPARE_CHUNK = 8 * 2**20

# Name in the file -> (name of the dtype, numpy's dtype). numpy lacks bfloat16 and float8: their
# bits are uint16 and uint8.
DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "F64": ("float64", np.dtype("<f8")),
    "F32": ("float32", np.dtype("<f4")),
    "F16": ("float16", np.dtype("<f2")),
    "BF16": ("bfloat16", np.dtype("<u2")),
    "I64": ("int64", np.dtype("<i8")),
    "I32": ("int32", np.dtype("<i4")),
    "I16": ("int16", np.dtype("<i2")),
    "I8": ("int8", np.dtype("i1")),
    "U8": ("uint8", np.dtype("u1")),
    "BOOL": ("bool", np.dtype("?")),
    "F8_E4M3": ("float8_e4m3", np.dtype("u1")),
}
NUMPY_DTYPES = dict(DTYPES.values())


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in the header, and the place of its bytes."""

    shape: tuple[int, ...]
    dtype: str  # "bfloat16", "float32", ...; the format's code if numpy cannot read it
    file: Path
    offset: int  # of the first byte, from the start of the file
    num_bytes: int
    stored_as: str = ""  # its name in the file, if that is another


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, checked to be complete.

    Raises:
        CheckpointError: unreadable, truncated, or the header does not match the file's size.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{file} is truncated or not a safetensors file: {size} bytes, and its header "
                    f"claims {length}; download it again"
                )
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its safetensors header is not JSON: {error}") from error
    return _check_header(file, header, 8 + length, size)


def _check_header(file: Path, header: Any, start: int, size: int) -> dict[str, TensorInfo]:
    try:
        tensors = {
            name: _parse_tensor(file, entry, start)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file}: its safetensors header is malformed: {error}") from error
    expected = max((info.offset + info.num_bytes for info in tensors.values()), default=start)
    if expected != size:
        kind = "truncated" if size < expected else "too long"
        raise CheckpointError(
            f"{file} is {kind}: its header describes {expected} bytes, it has {size}; "
            "download it again"
        )
    return tensors


def _parse_tensor(file: Path, entry: dict[str, Any], start: int) -> TensorInfo:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    code = str(entry["dtype"])
    name, dtype = DTYPES.get(code, (code, None))
    if not 0 <= begin <= end or min(shape, default=0) < 0:
        raise ValueError(f"offsets {begin}..{end}, shape {list(shape)}")
    if dtype is not None and math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"shape {list(shape)} of {name} does not fit {end - begin} bytes")
    return TensorInfo(shape, name, file, start + begin, end - begin)


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors have the same shape, dtype and bytes; reads up to the first difference.

    Raises:
        CheckpointError: a failed read.
    """
    if (one.shape, one.dtype, one.num_bytes) != (other.shape, other.dtype, other.num_bytes):
        return False
    try:
        with one.file.open("rb") as first, other.file.open("rb") as second:
            first.seek(one.offset)
            second.seek(other.offset)
            for start in range(0, one.num_bytes, COMPARE_CHUNK):
                size = min(COMPARE_CHUNK, one.num_bytes - start)
                if first.read(size) != second.read(size):
                    return False
    except OSError as error:
        raise CheckpointError(
            f"cannot read {one.file} or {other.file}: {error.strerror or error}"
        ) from error
    return True


def read_region(name: str, info: TensorInfo, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
    """`tensor[start:stop]` along `axis`, C-contiguous and writable; bfloat16 as its uint16 bits.

    Along axis 0 a region is contiguous in the file. Along other axes it is gathered through a
    memory map that is closed after this call, so that only the region stays in memory.

    Raises:
        CheckpointError: a region outside of the tensor, a dtype that numpy cannot read, or a
            failed read.
    """
    dtype = _numpy_dtype(name, info)
    if not 0 <= axis < max(1, len(info.shape)) or not 0 <= start <= stop <= (*info.shape, 1)[axis]:
        raise CheckpointError(
            f"{name} has shape {list(info.shape)}: there is no [{start}, {stop}) along axis {axis}"
        )
    shape = tuple(stop - start if index == axis else size for index, size in enumerate(info.shape))
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    if axis:
        region = (slice(None),) * axis + (slice(start, stop),)
        return read_part(name, info, lambda tensor: tensor[region])
    try:
        row_bytes = math.prod(info.shape[1:]) * dtype.itemsize
        offset = info.offset + start * row_bytes
        return np.fromfile(info.file, dtype, math.prod(shape), offset=offset).reshape(shape)
    except (OSError, ValueError) as error:  # ValueError: the file shrank after it was checked
        raise CheckpointError(f"cannot read {name} from {info.file}: {error}") from error


def read_part(
    name: str, info: TensorInfo, part: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """A copy of the part of a tensor that `part` indexes, C-contiguous; bfloat16 as uint16 bits.

    It is gathered through a memory map that is closed after this call.

    Raises:
        CheckpointError: a dtype that numpy cannot read, or a failed read.
    """
    try:
        mapped = np.memmap(info.file, _numpy_dtype(name, info), "r", info.offset, info.shape)
        return np.array(part(mapped), order="C", copy=True, subok=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {name} from {info.file}: {error}") from error


def _numpy_dtype(name: str, info: TensorInfo) -> np.dtype[Any]:
    if info.dtype not in NUMPY_DTYPES:
        raise CheckpointError(
            f"{name} in {info.file} is stored as {info.dtype}, which is not supported; "
            f"use a checkpoint in one of {sorted(NUMPY_DTYPES)}"
        )
    return NUMPY_DTYPES[info.dtype]
