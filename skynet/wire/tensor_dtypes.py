"""The dtypes of staged tensors, by name: numbers, or the blocks of a quantised matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.errors import WireError
from skynet.wire.blocks import BlockFormat

TRAVELS_AS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
BLOCK_BYTES = "|u1"


def block_format(dtype: str) -> BlockFormat | None:
    """The format of a quantised tensor's blocks; None for tensors of numbers."""
    try:
        return None if dtype in TRAVELS_AS else BlockFormat.parse(dtype)
    except WireError:
        return None


def travels_as(dtype: str) -> str | None:
    """Numpy's dtype of such a tensor's tiles; None for a dtype that is not staged."""
    return TRAVELS_AS.get(dtype) or (BLOCK_BYTES if block_format(dtype) else None)


def item_bytes(dtype: str) -> int:
    """Bytes of one element of such a tensor's shape."""
    return np.dtype(travels_as(dtype) or "V0").itemsize


def from_bfloat16(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Numbers of bfloat16, whose bits are given as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
