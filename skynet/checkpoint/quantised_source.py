"""What a checkpoint offers of a matrix that is quantised in its files."""

from __future__ import annotations

from typing import Literal, Protocol

from skynet.wire.quantised import Layout, Quantised


class QuantisedSource(Protocol):
    """A matrix (out, in), read as codes and scales.

    `Checkpoint.quantised` has one for each such tensor, by the tensor's name; `Checkpoint.tensors`
    has the name too, with the matrix's shape and its layout as dtype. `staged_as.py` decides which
    of them are staged in this form; `read(...).dequantised()` is the value of the others.

    The same codes and scales are read every time: a repair of a staged model compares checksums.
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def group(self) -> int:
        """Consecutive inputs that share a scale; one group for the whole row is allowed."""
        ...

    @property
    def scale_dtype(self) -> Literal["float16", "float32"]: ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), also where the file has the matrix transposed."""
        ...

    def read(self, axis: int, start: int, stop: int) -> Quantised:
        """Outputs [start, stop) (axis 0), or inputs [start, stop) at borders of groups (axis 1).

        The result has this source's layout, group and dtype of scales.

        Raises:
            CheckpointError: a failed read, or a region outside of the matrix.
        """
        ...
