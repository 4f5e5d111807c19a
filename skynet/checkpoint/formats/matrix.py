"""A quantised matrix of a checkpoint, read by region: see `QuantisedSource`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.quantised_source import QuantisedSource
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.wire.quantised import Layout, Quantised, pack_nibbles, quantise

ScaleDtype = Literal["float16", "float32"]
ROUNDED_GROUPS = (32, 16)
COMPARED_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Matrix:
    """Decodes outputs [start, stop) with `rows`, whose results have these properties.

    rounded: what the file has, if its numbers are not exactly those of the layout; else "".
    """

    name: str
    shape: tuple[int, int]
    layout: Layout
    group: int
    scale_dtype: ScaleDtype
    rows: Callable[[int, int], Quantised]
    rounded: str = ""

    def __post_init__(self) -> None:
        """Raises UnsupportedModel: groups that do not divide the inputs."""
        if self.group < 2 or self.group % 2 or self.shape[1] % self.group:
            raise UnsupportedModel(
                f"{self.name}: groups of {self.group} do not divide its {self.shape[1]} inputs "
                "evenly, or are odd, which is not supported; use another version of this model"
            )

    def read(self, axis: int, start: int, stop: int) -> Quantised:
        """See `QuantisedSource.read`."""
        unit = self.group if axis == 1 else 1
        if axis not in (0, 1) or not 0 <= start <= stop <= self.shape[axis]:
            raise CheckpointError(
                f"{self.name} has shape {list(self.shape)}: there is no [{start}, {stop}) along "
                f"axis {axis}"
            )
        if start % unit or stop % unit:
            raise CheckpointError(
                f"{self.name}: [{start}, {stop}) does not start and end at groups of {unit} inputs"
            )
        return self.rows(start, stop) if axis == 0 else columns(_whole(self), start, stop)


@lru_cache(maxsize=1)
def _whole(matrix: Matrix) -> Quantised:
    """The matrix that was read by its columns last: the next region is of the same one."""
    return matrix.rows(0, matrix.shape[0])


def columns(matrix: Quantised, start: int, stop: int) -> Quantised:
    """Inputs [start, stop), at borders of groups."""
    bytes_per_group = matrix.group if matrix.layout == "q8" else matrix.group // 2
    first, last = start // matrix.group, stop // matrix.group
    minimums = matrix.minimums
    return replace(
        matrix,
        codes=np.ascontiguousarray(
            matrix.codes[:, first * bytes_per_group : last * bytes_per_group]
        ),
        scales=np.ascontiguousarray(matrix.scales[:, first:last]),
        minimums=None if minimums is None else np.ascontiguousarray(minimums[:, first:last]),
    )


def reordered_rows(matrix: Quantised, order: npt.NDArray[Any]) -> Quantised:
    """Output i is output `order[i]` of `matrix`."""
    minimums = None if matrix.minimums is None else matrix.minimums[order]
    return replace(
        matrix, codes=matrix.codes[order], scales=matrix.scales[order], minimums=minimums
    )


def numbers(matrix: QuantisedSource, axis: int, start: int, stop: int) -> npt.NDArray[np.float32]:
    """The numbers of outputs (axis 0) or inputs (axis 1) [start, stop).

    Raises:
        CheckpointError: see `QuantisedSource.read`.
    """
    if axis == 0:
        return matrix.read(0, start, stop).dequantised()
    first, last = start - start % matrix.group, -(-stop // matrix.group) * matrix.group
    wider = matrix.read(1, first, last).dequantised()
    return np.ascontiguousarray(wider[:, start - first : stop - first])


def same_matrix(one: QuantisedSource, other: QuantisedSource) -> bool:
    """Whether two matrices have the same codes and scales; reads up to the first difference."""
    if (one.shape, one.layout, one.group) != (other.shape, other.layout, other.group):
        return False
    for start in range(0, one.shape[0], COMPARED_ROWS):
        stop = min(start + COMPARED_ROWS, one.shape[0])
        first, second = one.read(0, start, stop), other.read(0, start, stop)
        pairs = zip(_arrays(first), _arrays(second), strict=True)
        if not all(np.array_equal(left, right) for left, right in pairs):
            return False
    return True


def _arrays(matrix: Quantised) -> list[npt.NDArray[Any]]:
    arrays = (matrix.codes, matrix.scales, matrix.minimums)
    return [array for array in arrays if array is not None]


def signed(codes: npt.NDArray[np.int8], scales: npt.NDArray[Any], dtype: ScaleDtype) -> Quantised:
    """A q8 matrix: codes (out, in), scales (out, groups)."""
    group = codes.shape[1] // scales.shape[1]
    return Quantised("q8", group, np.ascontiguousarray(codes), scales.astype(dtype))


def with_zero_points(
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[Any],
    zeros: npt.NDArray[Any] | int,
    dtype: ScaleDtype,
) -> Quantised:
    """A q4 matrix, scale x (code - zero): codes (out, in), scales and zeros (out, groups).

    The minimum is exact in float32: a float16 or bfloat16 times an integer below 2048.
    """
    group = codes.shape[1] // scales.shape[1]
    scales = scales.astype(np.float32)
    minimums = (-scales * zeros).astype(dtype)
    return Quantised("q4", group, pack_nibbles(codes), scales.astype(dtype), minimums)


def rounded(
    name: str,
    shape: tuple[int, int],
    what: str,
    read: Callable[[int, int], npt.NDArray[np.float32]],
) -> Matrix:
    """A matrix whose numbers are rounded to q8. read: the numbers of outputs [start, stop).

    Raises:
        UnsupportedModel: no group size divides its inputs.
    """
    group = next((size for size in ROUNDED_GROUPS if shape[1] % size == 0), ROUNDED_GROUPS[0])

    def rows(start: int, stop: int) -> Quantised:
        return quantise(read(start, stop), "q8", group)

    return Matrix(name, shape, "q8", group, "float16", rows, what)
