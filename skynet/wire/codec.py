"""Msgpack with numpy arrays; dtypes are whitelisted, sizes checked.

The layout of an array is msgpack-numpy's (`{"nd": true, "type": ..., "shape": ..., "data": ...}`),
so any msgpack-numpy reader decodes it. msgpack-numpy's decoder unpickles object arrays; this one
never calls pickle, and checks shape x itemsize == length before it makes an array.
"""

from __future__ import annotations

import math
from typing import Any, cast

import msgpack
import msgpack_numpy
import numpy as np

from skynet.errors import WireError

CONTENT_TYPE = "application/x-skynet-msgpack"
MAX_DIMENSIONS = 8
MAX_ARRAY_BYTES = 512 * 2**20
MAX_MESSAGE_BYTES = 1024 * 2**20

ALLOWED_DTYPES = frozenset(
    np.dtype(kind).str
    for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
)


def encode(value: Any) -> bytes:
    """Msgpack of plain values and numpy arrays of whitelisted dtypes.

    Raises:
        WireError: an array of another dtype, or a value that msgpack does not support.
    """
    try:
        return cast(bytes, msgpack.packb(value, default=_encode_array, use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot encode: {error}") from error


def decode(data: bytes | memoryview) -> Any:
    """The value that `encode` was given. Arrays are read-only views.

    Raises:
        WireError: malformed msgpack, a dtype that is not whitelisted, or a wrong size.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes exceeds {MAX_MESSAGE_BYTES}")
    try:
        return msgpack.unpackb(
            data,
            object_hook=_decode_array,
            raw=False,
            strict_map_key=False,
            max_bin_len=MAX_ARRAY_BYTES,
        )
    except WireError:
        raise
    except Exception as error:  # msgpack's errors, ValueError, UnicodeDecodeError
        raise WireError(f"cannot decode {len(data)} bytes: {error}") from error


def _encode_array(value: Any) -> dict[str, Any]:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} is not a plain value or a numpy array")
    if value.dtype.str not in ALLOWED_DTYPES:
        raise WireError(f"dtype {value.dtype} cannot be sent; allowed: {sorted(ALLOWED_DTYPES)}")
    return cast(dict[str, Any], msgpack_numpy.encode(np.asarray(value, order="C")))


def _decode_array(message: dict[Any, Any]) -> Any:
    marker = message.get("nd", message.get(b"nd"))
    if marker is None:
        return message
    kind = _field(message, "kind")
    dtype_name, shape, data = (_field(message, name) for name in ("type", "shape", "data"))
    if marker is not True or kind not in ("", b"", None):
        raise WireError(f"an array of kind {kind!r} is not allowed: only plain numbers are")
    if not isinstance(dtype_name, str) or dtype_name not in ALLOWED_DTYPES:
        raise WireError(f"dtype {dtype_name!r} is not allowed: {sorted(ALLOWED_DTYPES)}")
    if not isinstance(data, bytes) or not isinstance(shape, (list, tuple)):
        raise WireError("an array needs bytes and a shape")
    if len(shape) > MAX_DIMENSIONS or not all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape
    ):
        raise WireError(f"shape {shape!r} is not allowed: at most {MAX_DIMENSIONS} sizes >= 0")
    dtype = np.dtype(dtype_name)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"shape {shape!r} of {dtype_name} does not fit {len(data)} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _field(message: dict[Any, Any], name: str) -> Any:
    return message.get(name, message.get(name.encode()))
