"""Regions of a checkpoint's matrices in float32, (out, in), however the file stores them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.quantised_source import QuantisedSource
from skynet.wire.tensor_dtypes import from_bfloat16

Floats = npt.NDArray[np.float32]
NUMBERS = ("float32", "float16", "bfloat16")


class FloatRegions(Protocol):
    """A matrix (out, in)."""

    def __call__(self, axis: int, start: int, stop: int) -> Floats:
        """Outputs (axis 0) or inputs (axis 1) [start, stop)."""
        ...


class NumberRegions:
    """Of a tensor of numbers; transposed: it is stored (in, out)."""

    def __init__(self, checkpoint: Checkpoint, name: str, transposed: bool) -> None:
        self._checkpoint, self._name, self._transposed = checkpoint, name, transposed
        self._dtype = checkpoint.tensors[name].dtype

    def __call__(self, axis: int, start: int, stop: int) -> Floats:
        array = self._checkpoint.read(self._name, axis ^ self._transposed, start, stop)
        numbers = from_bfloat16(array) if self._dtype == "bfloat16" else array.astype(np.float32)
        return numbers.T if self._transposed else numbers


class SourceRegions:
    """Of a quantised tensor."""

    def __init__(self, source: QuantisedSource) -> None:
        self._source = source

    def __call__(self, axis: int, start: int, stop: int) -> Floats:
        if axis == 0:
            return self._source.read(0, start, stop).dequantised()
        group = self._source.group
        first = start // group * group
        matrix = self._source.read(1, first, -(-stop // group) * group)
        return matrix.dequantised()[:, start - first : stop - first]


def to_bfloat16(numbers: Floats) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers), 0x7FC0, nearest).astype("<u2")
