"""The one binary form of hidden states and partials: a small header, then row-major numbers.

Used by the exchange, by a part's hidden states and by those that a span starts from. Never calls
pickle; kind and size are checked before any array is made.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skynet.errors import WireError

# magic, kind, rows, columns
HEADER = struct.Struct("<2sHII")
MAGIC = b"SX"
FLOAT32, BFLOAT16, INT8 = 0, 1, 2
_NAMES = {FLOAT32: "float32", BFLOAT16: "bfloat16", INT8: "int8"}
# Numbers in a block, which is not cut, and bytes of a block. Of int8: a scale, then the codes.
BLOCK = 32
_BLOCKS = {FLOAT32: (1, 4), BFLOAT16: (1, 2), INT8: (BLOCK, 4 + BLOCK)}
_INT8_BLOCK = np.dtype([("scale", "<f4"), ("codes", "i1", (BLOCK,))])
# numpy lacks bfloat16: its bits are uint16 there.
_DTYPES: dict[int, np.dtype[Any]] = {FLOAT32: np.dtype("<f4"), BFLOAT16: np.dtype("<u2")}
_KINDS = {dtype: kind for kind, dtype in _DTYPES.items()}


class Frame(NamedTuple):
    """A matrix (rows, columns) of numbers; `data` is a view of them.

    int8: blocks of 32 codes in row-major order with a scale each; the last is filled up with zeros.
    """

    kind: int
    rows: int
    columns: int
    data: bytes | memoryview

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns} {_NAMES[self.kind]}"

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Frame:
        """The frame of a float32 matrix, or of a uint16 matrix with the bits of bfloat16.

        Raises:
            WireError: another dtype, or not a matrix.
        """
        kind = _KINDS.get(array.dtype)
        if kind is None or array.ndim != 2:
            raise WireError(
                "a frame holds a matrix of float32 or of bfloat16 bits, not "
                f"{array.dtype} of shape {array.shape}"
            )
        rows, columns = array.shape
        data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        return cls(kind, rows, columns, data)

    @classmethod
    def of_int8(cls, values: npt.NDArray[np.float32]) -> Frame:
        """(rows, columns) rounded to int8. NaN and infinity make their block NaN."""
        rows, columns = values.shape
        padded = np.zeros((-(-values.size // BLOCK), BLOCK), np.float32)
        padded.reshape(-1)[: values.size] = values.reshape(-1)
        blocks = np.empty(len(padded), _INT8_BLOCK)
        with np.errstate(invalid="ignore", over="ignore"):
            scale = np.abs(padded).max(axis=1) / np.float32(127)
            divisor = np.where(scale > 0, scale, np.float32(1))
            codes = np.rint(padded / divisor[:, None])
        finite = np.isfinite(scale)
        blocks["scale"] = np.where(finite, scale, np.float32(np.nan))
        blocks["codes"] = np.where(finite[:, None], codes, 0)
        return cls(INT8, rows, columns, blocks.view(np.uint8).data)

    def flat(self, start: int, stop: int) -> Frame:
        """The numbers [start, stop) in row-major order, as one row, without a copy.

        start: the start of a block.
        """
        data = self.data[data_bytes(self.kind, start) : data_bytes(self.kind, stop)]
        return Frame(self.kind, 1, stop - start, data)

    @property
    def header(self) -> bytes:
        return HEADER.pack(MAGIC, self.kind, self.rows, self.columns)

    def encode(self) -> bytes:
        """Header, then numbers."""
        return self.header + self.data

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> Frame:
        """What `encode` made, without a copy.

        Raises:
            WireError: not bytes, no header, an unknown kind, or a size other than the header's.
        """
        kind, rows, columns, stop = _read_header(payload)
        if len(payload) != stop:
            raise WireError(f"a frame of {stop} bytes in a message of {len(payload)}")
        return cls(kind, rows, columns, memoryview(payload)[HEADER.size :])

    @classmethod
    def split(cls, payload: bytes | memoryview) -> tuple[Frame, memoryview]:
        """The frame at the start of `payload` and the bytes after it, without a copy.

        Raises:
            WireError: not bytes, no header, an unknown kind, or fewer bytes than the header's.
        """
        kind, rows, columns, stop = _read_header(payload)
        view = memoryview(payload)
        return cls(kind, rows, columns, view[HEADER.size : stop]), view[stop:]

    def array(self) -> npt.NDArray[Any]:
        """(rows, columns), a view, read-only if decoded: float32, or bfloat16's bits as uint16.

        Of int8 the numbers in float32.
        """
        if self.kind == INT8:
            return self.floats()
        return np.ndarray((self.rows, self.columns), _DTYPES[self.kind], self.data)

    def floats(self) -> npt.NDArray[np.float32]:
        """(rows, columns) float32; of float32 a view."""
        if self.kind == FLOAT32:
            return self.array()
        if self.kind == INT8:
            blocks = np.ndarray(len(self.data) // _INT8_BLOCK.itemsize, _INT8_BLOCK, self.data)
            values = blocks["scale"][:, None] * blocks["codes"]
            return values.reshape(-1)[: self.rows * self.columns].reshape(self.rows, self.columns)
        return (self.array().astype(np.uint32) << 16).view(np.float32)

    def copy(self) -> npt.NDArray[Any]:
        """As `array`, but writable: torch takes no read-only arrays."""
        if self.kind == INT8:
            return self.floats()
        return np.ndarray((self.rows, self.columns), _DTYPES[self.kind], bytearray(self.data))


def data_bytes(kind: int, count: int) -> int:
    """Bytes of this many numbers."""
    numbers, size = _BLOCKS[kind]
    return -(-count // numbers) * size


def _read_header(payload: bytes | memoryview) -> tuple[int, int, int, int]:
    """Kind, rows, columns and the frame's size in bytes, header included; all are checked."""
    if not isinstance(payload, (bytes, memoryview)) or len(payload) < HEADER.size:
        raise WireError(f"not a frame: {payload!r:.80}")
    magic, kind, rows, columns = HEADER.unpack_from(payload)
    if magic != MAGIC or kind not in _BLOCKS:
        raise WireError(f"not a frame: magic {magic!r}, kind {kind}")
    stop = HEADER.size + data_bytes(kind, rows * columns)
    if len(payload) < stop:
        raise WireError(
            f"a frame of {rows}x{columns} {_NAMES[kind]} takes {stop} bytes, got {len(payload)}"
        )
    return kind, rows, columns, stop
