"""The codec: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import pickle
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skynet.errors import WireError
from skynet.wire import codec

DTYPES = st.sampled_from(sorted(codec.ALLOWED_DTYPES)).map(np.dtype)
ARRAYS = DTYPES.flatmap(
    lambda dtype: npst.arrays(
        dtype, npst.array_shapes(min_dims=1, max_dims=codec.MAX_DIMENSIONS, min_side=0, max_side=3)
    )
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("xyz"), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("pickle was called")

    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(msgpack_numpy, "pickle", pickle, raising=False)


def array_message(**fields: Any) -> bytes:
    """A whitelisted array's message, with some fields replaced; None leaves one out."""
    message = {"nd": True, "type": "<f4", "kind": "", "shape": [2], "data": bytes(8)}
    message.update(fields)
    return bytes(msgpack.packb({key: value for key, value in message.items() if value is not None}))


@given(PLAIN)
def test_plain_values_round_trip(value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value


@given(ARRAYS)
def test_arrays_round_trip_bit_by_bit(array: np.ndarray[Any, Any]) -> None:
    back = codec.decode(codec.encode({"x": [array]}))["x"][0]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@given(ARRAYS)
def test_any_msgpack_numpy_reader_understands_an_array(array: np.ndarray[Any, Any]) -> None:
    back = msgpack.unpackb(codec.encode(array), object_hook=msgpack_numpy.decode)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_an_array_without_dimensions_keeps_its_shape() -> None:
    assert codec.decode(codec.encode(np.array(1, np.float32))).shape == ()


def test_arrays_that_are_not_contiguous_round_trip() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[:, ::2], array[::-1]):
        np.testing.assert_array_equal(codec.decode(codec.encode(view)), view)


def test_numpy_numbers_round_trip() -> None:
    assert codec.decode(codec.encode([np.float32(0.5), np.int64(-3), np.bool_(True)])) == [
        0.5,
        -3,
        1,
    ]


def test_a_memory_view_is_decoded_without_a_copy() -> None:
    data = codec.encode(np.arange(4, dtype=np.int32))
    back = codec.decode(memoryview(data))
    assert back.tolist() == [0, 1, 2, 3]
    assert not back.flags.writeable


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize("dtype", ["object", "complex64", "U3", "S3", "datetime64[s]", ">f4"])
def test_other_dtypes_are_not_encoded(dtype: str) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        codec.encode(np.zeros(2, dtype))


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, 2**64, "\ud800"])
def test_unsupported_values_are_not_encoded(value: object) -> None:
    with pytest.raises(WireError, match="cannot encode"):
        codec.encode([value])


def test_an_object_array_is_refused_without_pickle(request: pytest.FixtureRequest) -> None:
    # Given what msgpack-numpy makes of an object array: a pickle of kind "O"
    payload = msgpack.packb(np.array([print], dtype=object), default=msgpack_numpy.encode)
    assert b"O" in payload
    # When pickle may not be called at all
    request.getfixturevalue("no_pickle")
    # Then it is refused all the same
    with pytest.raises(WireError, match="kind"):
        codec.decode(payload)


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "O"},
        {"kind": b"O"},
        {"kind": "V"},
        {"kind": 1},
        {"nd": False},
        {"nd": 1},
        {"nd": [True]},
        {"type": "|O"},
        {"type": b"<f4"},
        {"type": "<c8"},
        {"type": ">f4"},
        {"type": [["x", "<f4"]]},
        {"type": None},
        {"shape": None},
        {"shape": [3]},
        {"shape": []},
        {"shape": [-2]},
        {"shape": [-1, -2]},
        {"shape": [True, 2]},
        {"shape": [2.0]},
        {"shape": "2"},
        {"shape": [2**63, 2]},
        {"shape": [2**32, 2**32, 0]},
        {"shape": [1] * 8 + [2]},
        {"data": None},
        {"data": "text of 8"},
        {"data": bytes(7)},
        {"data": [0] * 8},
    ],
)
def test_an_array_message_with_invalid_fields_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        codec.decode(array_message(**fields))


def test_scalars_of_msgpack_numpy_are_refused_or_left_alone() -> None:
    payload = msgpack.packb(np.float32(1), default=msgpack_numpy.encode)
    with pytest.raises(WireError):
        codec.decode(payload)


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x01\x02",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000 + b"\x01",
        b"\x81\x81\x01\x02\x03",
        b"\x81\x90\x01",
    ],
)
def test_broken_messages_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        codec.decode(data)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        codec.decode(data)
    except WireError:
        pass


@given(ARRAYS, st.data())
def test_damaged_messages_raise_nothing_else(
    array: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    message = bytearray(codec.encode({"x": array, "y": [1, "two", None]}))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        codec.decode(bytes(message))
    except WireError:
        pass
