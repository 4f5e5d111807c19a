"""Codes and scales mean the weights that they were made of, to half a code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from skynet.errors import WireError
from skynet.wire.quantised import Quantised, pack_nibbles, quantise, unpack_nibbles


def weights(outputs: int = 6, inputs: int = 96) -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(outputs, inputs)).astype(np.float32)
    made[1, :32] = 0
    return made


@pytest.mark.parametrize("layout", ["q8", "q4"])
def test_weights_are_within_half_a_code(layout: str) -> None:
    weight = weights()
    made = quantise(weight, layout)  # type: ignore[arg-type]
    assert made.shape == weight.shape
    assert made.scales.dtype == np.float16
    error = np.abs(made.dequantised() - weight).reshape(6, 3, 32).max(axis=2)
    # Half a code, and what float16 rounds off the largest code's weight.
    assert (error <= made.scales * 0.5 + np.abs(weight).max() * 2**-10).all()
    assert not made.dequantised()[1, :32].any()


@pytest.mark.parametrize(("layout", "bits"), [("q8", 8.5), ("q4", 5.0)])
def test_a_weight_takes_few_bits(layout: str, bits: float) -> None:
    weight = weights()
    assert quantise(weight, layout).nbytes * 8 == weight.size * bits  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["q8", "q4"])
def test_smaller_groups_hold_the_same_weights(layout: str) -> None:
    made = quantise(weights(), layout)  # type: ignore[arg-type]
    smaller = made.regrouped(8)
    assert smaller.group == 8
    np.testing.assert_array_equal(smaller.dequantised(), made.dequantised())
    with pytest.raises(WireError, match="groups of 32 cannot become groups of 12"):
        made.regrouped(12)


def test_nibbles_are_in_the_order_of_inputs() -> None:
    codes = np.arange(16, dtype=np.uint8).reshape(2, 8)
    assert pack_nibbles(codes)[0].tolist() == [0x10, 0x32, 0x54, 0x76]
    np.testing.assert_array_equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    made = quantise(weights(), "q4")
    for change in (
        {"codes": made.codes.astype(np.int8)},
        {"scales": made.scales[:, :2]},
        {"scales": made.scales.astype(np.float32)},
        {"minimums": None},
        {"group": 64},
        {"layout": "q8"},
    ):
        with pytest.raises(WireError, match="no q"):
            replace(made, **change)  # type: ignore[arg-type]
    with pytest.raises(WireError, match="no q8"):
        Quantised("q8", 0, made.codes.view(np.int8), made.scales)
