"""Runs the sides of a stack's layers: in decoding steps many of them as one call of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from skynet.kernels.sides import SidePrograms, SideRun
from skynet.kernels.steps import StepKernels
from skynet.kernels.sums import Sums
from skynet.layers.block import CompiledBlock
from skynet.layers.context import StepContext
from skynet.layers.layer import Layer, Side
from skynet.layers.norm import AllReduce
from skynet.planning.ranges import Range


@runtime_checkable
class SummedInC(AllReduce, Protocol):
    """An all-reduce that the kernels can make: by direct links, or of one shard."""

    @property
    def is_alone(self) -> bool:
        """Whether this shard is the only one of its stage: a partial is the sum."""
        ...

    def sums(self, shape: tuple[int, int]) -> Sums | None:
        """For sums of (tokens, hidden) float32 from the next one on; None: not by the kernels."""
        ...

    def resume(self, sums: Sums, done: int, partial: torch.Tensor | None) -> torch.Tensor | None:
        """Go on after `done` of the sums. If there is a partial, the next one is begun with it.

        Returns its sum.
        """
        ...


class _Place(NamedTuple):
    """Where a side is in a run that the kernels support; stop: the number of the side after it."""

    run: SideRun
    first: int
    stop: int


class SideRuns:
    """All sides of a stack's layers, in order."""

    def __init__(self, layers: Sequence[Layer], kernels: StepKernels | None) -> None:
        self._sides = [side for layer in layers for side in layer.sides]
        self._starts = list(accumulate((len(layer.sides) for layer in layers), initial=0))
        self._places: list[_Place | None] = [None] * len(self._sides)
        if kernels is not None:
            self._find_runs(kernels)

    def __call__(
        self,
        x: torch.Tensor,
        layers: Range,
        context: StepContext,
        all_reduce: AllReduce,
        but_last: bool = False,
    ) -> torch.Tensor:
        """The hidden states (tokens, hidden) float32 after some layers.

        layers: counted from the stack's first.
        but_last: without the last side.
        """
        at, stop = self._starts[layers.start], self._starts[layers.stop] - but_last
        while at < stop:
            place = self._places[at] if context.decoding is not None else None
            if place is None or not isinstance(all_reduce, SummedInC):
                x, at = self._sides[at](x, context, all_reduce), at + 1
            else:
                x, at = self._in_c(x, range(at, min(stop, place.stop)), context, all_reduce)
        return x

    def _in_c(
        self, x: torch.Tensor, sides: range, context: StepContext, all_reduce: SummedInC
    ) -> tuple[torch.Tensor, int]:
        """Run sides up to the first whose sum does not come at once, that one too.

        Returns the hidden states, and the number of the next side.
        """
        place, step = self._places[sides.start], context.decoding
        sums = None if all_reduce.is_alone else all_reduce.sums((x.shape[0], x.shape[1]))
        if place is None or step is None or (sums is None and not all_reduce.is_alone):
            return self._sides[sides.start](x, context, all_reduce), sides.start + 1
        x = x.clone(memory_format=torch.contiguous_format)  # it is changed in place
        numbers = range(sides.start - place.first, sides.stop - place.first)
        done, partial = place.run(x, numbers, step, sums, context.step.rows)
        at = sides.start + done
        if sums is not None:
            total = all_reduce.resume(sums, done, partial)
            if total is not None:
                x, at = self._sides[at].after(x, total), at + 1
        return x, at

    def _find_runs(self, kernels: StepKernels) -> None:
        programs = [_programs(side, kernels) for side in self._sides]
        at = 0
        while at < len(programs):
            stop = at
            run = []
            while stop < len(programs) and (each := programs[stop]) is not None:
                run.append(each)
                stop += 1
            if run:
                place = _Place(SideRun(kernels.library, run), at, stop)
                self._places[at:stop] = [place] * len(run)
            at = stop + 1


def _programs(side: Side, kernels: StepKernels) -> SidePrograms | None:
    """None: the kernels do not support all of it."""
    if not (isinstance(side.block, CompiledBlock) and side.block.program.is_one_call):
        return None
    after = kernels.program()
    return SidePrograms(side.block.program, after) if side.after.emit(after) else None
