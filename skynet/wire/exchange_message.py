"""The messages of the exchange: a header, then a frame, or the reason why a shard failed.

The tag in the header says to which sum a message belongs: a late one is never taken for another.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from skynet.errors import WireError

# Bytes after the header, kind, then the tag: part of a sum, epoch, step, position of the sum.
HEADER = struct.Struct("<IBxHQQI")
_TAG = struct.Struct("<HQQI")
_START = struct.Struct("<IBx")
TAG_AT = _START.size
POSITION_AT = HEADER.size - struct.calcsize("<I")  # of the sum
# What follows: a frame; why a shard failed; that it computed NaN or infinity.
PARTIAL, FAILED, NOT_FINITE = 0, 1, 2
MAX_REASON_BYTES = 4096
MAX_BYTES = 2**32 - 1


class Message(NamedTuple):
    """A received message; `data` may be a view that is valid until the next one."""

    kind: int
    data: bytes | memoryview


def tag_of(epoch: int, step: int, position: int, part: int = 0) -> bytes:
    """The tag of a sum. part: numbers the messages of a sum that takes several."""
    return _TAG.pack(part, epoch, step, position)


def header_of(tag: bytes, num_bytes: int, kind: int = PARTIAL) -> bytes:
    """The header of a message with `num_bytes` after it."""
    return _START.pack(num_bytes, kind) + tag


def start_of(buffer: bytes | bytearray | memoryview, at: int = 0) -> tuple[int, int]:
    """(bytes after the header, kind) of the header at `at`."""
    return _START.unpack_from(buffer, at)


def check_size(num_bytes: int, kind: int, expected: int) -> None:
    """Check a header before anything is allocated for it.

    Raises:
        WireError: not a message of the size that is expected, nor a short reason.
    """
    if kind == PARTIAL and num_bytes == expected:
        return
    if kind in (FAILED, NOT_FINITE) and num_bytes <= MAX_REASON_BYTES:
        return
    raise WireError(f"a message of kind {kind} and {num_bytes} bytes, expected {expected}")


def read_message(data: bytes, tag: bytes, expected: int) -> Message | None:
    """A whole message; None if it belongs to another sum, or is of another client.

    Raises:
        WireError: not of the size that is expected.
    """
    if data[TAG_AT : HEADER.size] != tag:
        return None
    num_bytes, kind = start_of(data)
    if num_bytes != len(data) - HEADER.size:
        raise WireError(f"a message of {num_bytes} bytes in {len(data) - HEADER.size}")
    check_size(num_bytes, kind, expected)
    return Message(kind, memoryview(data)[HEADER.size :])
