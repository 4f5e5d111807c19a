"""Frames: the numbers that went in come out, and nothing else comes in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skynet.errors import WireError
from skynet.wire.frame import BFLOAT16, FLOAT32, HEADER, MAGIC, Frame
from skynet.wire.step import Part

MATRICES = st.sampled_from([np.float32, np.uint16]).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=2, max_dims=2, min_side=0))
)
FRAME = Frame.of(np.arange(6, dtype=np.float32).reshape(2, 3))


@given(MATRICES)
def test_matrices_round_trip_bit_by_bit(array: np.ndarray[Any, Any]) -> None:
    frame = Frame.of(array)
    back = Frame.decode(frame.encode())
    assert back[:3] == frame[:3]
    for values in (back.array(), back.copy()):
        assert (values.dtype, values.shape) == (array.dtype, array.shape)
        assert values.tobytes() == array.tobytes()


def test_a_decoded_array_is_a_view_and_a_copy_is_not() -> None:
    # Given a frame's bytes
    payload = FRAME.encode()
    # When they are decoded
    frame = Frame.decode(payload)
    # Then the array is read-only and no copy, a copy is writable
    assert np.shares_memory(frame.array(), np.frombuffer(payload, np.uint8))
    assert not frame.array().flags.writeable
    assert frame.copy().flags.writeable


def test_matrices_that_are_not_contiguous_are_framed_in_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(Frame.decode(Frame.of(array.T).encode()).array(), array.T)


@pytest.mark.parametrize(
    "array",
    [np.zeros((1, 2), np.float64), np.zeros((1, 2), object), np.zeros(2, np.float32)],
    ids=["float64", "object", "vector"],
)
def test_only_matrices_of_two_dtypes_are_framed(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(WireError, match="a frame holds a matrix"):
        Frame.of(array)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", "not a frame"),
        (b"?", "not a frame"),
        ("text, long enough", "not a frame"),
        (None, "not a frame"),
        (HEADER.pack(b"??", FLOAT32, 0, 0), "magic"),
        (HEADER.pack(MAGIC, 2, 1, 1) + bytes(4), "kind 2"),
        (HEADER.pack(MAGIC, FLOAT32, 1, 2) + bytes(4), "1x2 float32 takes 20 bytes, got 16"),
        (HEADER.pack(MAGIC, BFLOAT16, 2**32 - 1, 2**32 - 1), "bfloat16 takes"),
        (FRAME.encode() + b"x", "a frame of 36 bytes in a message of 37"),
    ],
)
def test_other_bytes_are_no_frame(payload: Any, problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        Frame.decode(payload)


@pytest.mark.parametrize("hidden", [None, np.ones((2, 3), np.float32), np.ones((0, 3), np.float32)])
def test_a_parts_hidden_states_round_trip(hidden: np.ndarray[Any, Any] | None) -> None:
    back = Part.decode(Part(hidden, compute_s=0.5, wait_s=0.25).encode())
    assert (back.compute_s, back.wait_s, back.candidates, back.vectors) == (0.5, 0.25, [], [])
    if hidden is None:
        assert back.hidden is None
    else:
        np.testing.assert_array_equal(back.hidden, hidden, strict=True)


def test_a_parts_hidden_states_are_float32() -> None:
    fields = Part().encode()
    half = Frame.of(np.zeros((2, 3), np.uint16)).encode()
    for payload in (half + fields, FRAME.encode(), FRAME.encode()[:-1], FRAME.encode() + b"x"):
        with pytest.raises(WireError, match="not a part"):
            Part.decode(payload)
