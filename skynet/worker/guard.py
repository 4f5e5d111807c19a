"""What one shard has computed under one plan, and so which spans it may run.

Messages may come twice, late, in another order or not at all. A span runs at most once, after the
spans before it, over slots that this process itself filled; anything else would give wrong tokens
without a word.
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore

from skynet.errors import ShardUnready
from skynet.step import Step

REMEMBERED_SPANS = 4096
REMEMBERED_STEPS = 64


class StepGuard:
    """The steps of one epoch at one address; a new epoch has a new one."""

    def __init__(self, address: str, first_layer: int) -> None:
        self.address = address
        self.first_layer = first_layer
        self.steps: dict[int, tuple[Step, bytes]] = {}  # as decoded and as they came
        self._seen: dict[tuple[int, int], None] = {}  # (step, layer), oldest first
        self._reached: dict[int, int] = {}  # step -> the layer it has come to
        self._filled: dict[int, int] = {}  # slot -> tokens in it
        self._last_step: dict[int, int] = {}  # slot -> the last step that wrote into it

    def remember(self, step: Step, rows: bytes) -> None:
        """Keep a step for its later spans."""
        self.steps[step.number] = (step, rows)
        _limit(self.steps, REMEMBERED_STEPS)

    def check(self, number: int, start: int) -> None:
        """May the span of step `number` that starts at layer `start` run, as far as layers go?

        Raises:
            Ignore: it came before.
            ShardUnready: this process has not computed the layers before.
        """
        if (number, start) in self._seen:
            raise Ignore(f"step {number}: layer {start} came twice")
        if start > self.first_layer and self._reached.get(number) != start:
            raise ShardUnready(
                f"{self.address} has not computed the layers before {start} of step {number}"
            )

    def admit(self, step: Step, start: int) -> None:
        """The same for its slots; a step that begins here marks them as its own.

        Raises:
            Ignore: a later step has been in one of the slots.
            ShardUnready: keys and values before a row's first token are missing.
        """
        for row in step.rows:
            last = self._last_step.get(row.slot, -1)
            if last > step.number or (start > self.first_layer and last != step.number):
                raise Ignore(f"step {step.number}: step {last} has been in slot {row.slot}")
            filled = self._filled.get(row.slot, 0)
            if start == self.first_layer and row.source is not None:
                self._check_source(step, row.source, row.start)
            elif start == self.first_layer and row.start > filled:
                raise ShardUnready(
                    f"{self.address} has {filled} tokens in slot {row.slot}, step {step.number} "
                    f"goes on at {row.start}"
                )
        self._seen[(step.number, start)] = None
        _limit(self._seen, REMEMBERED_SPANS)
        if start == self.first_layer:
            for row in step.rows:
                self._last_step[row.slot] = step.number
                self._filled[row.slot] = row.stop

    def _check_source(self, step: Step, slot: int, length: int) -> None:
        """May the first `length` tokens be copied from this slot?"""
        last, filled = self._last_step.get(slot, -1), self._filled.get(slot, 0)
        if last > step.number:
            raise Ignore(f"step {step.number}: step {last} has been in slot {slot}, its source")
        if length > filled:
            raise ShardUnready(
                f"{self.address} has {filled} tokens in slot {slot}, step {step.number} copies "
                f"{length} from there"
            )

    def done(self, number: int, stop: int) -> None:
        """The layers before `stop` are computed."""
        self._reached[number] = stop
        _limit(self._reached, REMEMBERED_STEPS)


def _limit(table: dict[Any, Any], size: int) -> None:
    while len(table) > size:
        del table[next(iter(table))]
