"""Consecutive sides of layers, and the sums between them, as one call: see sides.c."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from skynet.kernels.library import Library
from skynet.kernels.steps import DecodingStep, Number, Pointer, Program
from skynet.kernels.sums import Sums
from skynet.wire.step import Row


class _Side(ctypes.Structure):
    _fields_ = (
        ("before", Pointer),
        ("after", Pointer),
        ("num_before", Number),
        ("num_after", Number),
    )


class SidePrograms(NamedTuple):
    """before: to the partial, in `OUTPUT`; after: from its sum there to the next `INPUT`."""

    before: Program
    after: Program


class SideRun:
    """Sides that follow each other."""

    def __init__(self, library: Library, sides: Sequence[SidePrograms]) -> None:
        self._library, self._programs = library, list(sides)  # which the calls point into
        self._sides: ctypes.Array[_Side] | None = None

    def __call__(
        self,
        x: torch.Tensor,
        sides: range,
        step: DecodingStep,
        sums: Sums | None,
        rows: Sequence[Row],
    ) -> tuple[int, torch.Tensor | None]:
        """Run some of the sides on `x` (rows, hidden) float32, contiguous, in place.

        Returns how many of them are done, and the partial of the next one if there is one: its sum
        is begun. sums: None for the only shard of a stage. rows: of the step.
        """
        if self._sides is None:
            self._sides = (_Side * len(self._programs))(*map(_side, self._programs))
        for programs in self._programs[sides.start : sides.stop]:
            programs.before.prepare(rows)
        partial = torch.empty_like(x)
        if sums is not None:
            total = torch.empty_like(x)
            sums.total, sums.count = total.data_ptr(), total.numel()
        done = self._library.run_sides(
            ctypes.addressof(self._sides[sides.start]),
            len(sides),
            step.address,
            x.data_ptr(),
            partial.data_ptr(),
            None if sums is None else ctypes.addressof(sums),
        )
        return done, partial if done < len(sides) else None


def _side(programs: SidePrograms) -> _Side:
    (before, num_before), (after, num_after) = (each.calls() for each in programs)
    return _Side(before, after, num_before, num_after)
