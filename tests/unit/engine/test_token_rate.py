"""Tokens per second of the recent past."""

from __future__ import annotations

import pytest

from skynet.engine.token_rate import WINDOW_S, TokenRate


def test_the_rate_is_that_of_the_window() -> None:
    rate = TokenRate()
    # Given nothing to compare with
    assert rate.measure(100.0, 50) == 0
    # When 10 tokens a second are measured twice a second
    assert rate.measure(100.5, 55) == 10
    measured = [rate.measure(100 + half / 2, 50 + 5 * half) for half in range(2, 40)]
    assert measured == pytest.approx([10] * len(measured))
    # Then, once all is still, the rate falls within the window, and stays 0
    last = 50 + 5 * 39
    assert 0 < rate.measure(119.5 + WINDOW_S / 2, last) < 10
    assert rate.measure(119.5 + 2 * WINDOW_S, last) < 1
    assert rate.measure(119.5 + 4 * WINDOW_S, last) == 0


def test_measurements_at_one_time_have_no_rate() -> None:
    rate = TokenRate()
    assert [rate.measure(7.0, count) for count in (1, 2, 3)] == [0, 0, 0]


def test_few_measurements_are_kept() -> None:
    rate = TokenRate()
    for half in range(1000):
        rate.measure(half / 2, half)
    assert len(rate._measured) <= 2 * WINDOW_S + 2
