"""Waiting for what another process or thread does: for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAIT_S = 30.0


def wait_for(what: str, condition: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """The first true value of `condition`; an error after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(0.01)
    return value
