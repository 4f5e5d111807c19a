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
        (HEADER.pack(MAGIC, 3, 1, 1) + bytes(4), "kind 3"),
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


@pytest.mark.parametrize("shape", [(1, 1), (2, 31), (3, 32), (5, 77), (0, 4)])
def test_int8_rounds_to_half_a_step_of_its_block(shape: tuple[int, int]) -> None:
    # Given numbers of different sizes
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 100
    # When they are rounded and sent
    frame = Frame.decode(Frame.of_int8(values).encode())
    # Then no number is off by more than half a step of the largest
    assert str(frame) == f"{shape[0]}x{shape[1]} int8"
    assert frame.floats().shape == shape
    if values.size:
        step = np.abs(values).max() / 127
        assert np.abs(frame.floats() - values).max() <= step / 2 * 1.001
    assert len(frame.data) == -(-values.size // 32) * 36


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_does_not_hide_numbers_that_are_not_finite(bad: float) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 3] = bad
    floats = Frame.of_int8(values).floats()
    assert np.array_equal(floats[0], values[0])
    assert not np.isfinite(floats[1]).any()


def test_a_slice_of_a_frame_is_a_view_of_whole_blocks() -> None:
    values = np.arange(100, dtype=np.float32).reshape(4, 25)
    for frame in (Frame.of(values), Frame.of_int8(values)):
        part = frame.flat(32, 70)
        assert np.array_equal(part.floats()[0], frame.floats().reshape(-1)[32:70])
