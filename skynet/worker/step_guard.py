"""What one shard has computed under one plan, and so which spans it may run.

Messages may come twice, late, in another order or not at all. A span runs at most once, after the
spans before it, over slots that this process itself filled; anything else would give wrong tokens
without a word.
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore

from skynet.errors import ShardUnready
from skynet.wire.step import Row, Step

REMEMBERED_SPANS = 4096
REMEMBERED_STEPS = 64
SLOT, ENCODER_KV = "slot", "encoder KV"


# Where keys and values lie: a sequence's slot, or the place of a text that an encoder has read.
Where = tuple[str, int]


class StepGuard:
    """The steps of one epoch at one address; a new epoch has a new one.

    encoder_layers: of the model; a step that starts before is of texts, for the memory.
    """

    def __init__(self, address: str, first_layer: int, encoder_layers: int = 0) -> None:
        self.address = address
        self.first_layer = first_layer
        self.encoder_layers = encoder_layers
        self.steps: dict[int, tuple[Step, bytes]] = {}  # as decoded and as they came
        self._seen: dict[tuple[int, int], None] = {}  # (step, layer), oldest first
        self._reached: dict[int, int] = {}  # step -> the layer it has come to
        self._filled: dict[Where, int] = {}  # tokens there
        self._last_step: dict[Where, int] = {}  # the last step that wrote there

    def remember(self, step: Step, rows: bytes) -> None:
        """Keep a step for its later spans."""
        self.steps[step.number] = (step, rows)
        _limit(self.steps, REMEMBERED_STEPS)

    def check(self, number: int, start: int) -> None:
        """Has the span of step `number` that starts at layer `start` not run yet?

        Raises:
            Ignore: it came before.
        """
        if (number, start) in self._seen:
            raise Ignore(f"step {number}: layer {start} came twice")

    def admit(self, step: Step, start: int) -> None:
        """May the span run? A step that begins here marks what it writes as its own.

        Raises:
            Ignore: a later step has been there.
            ShardUnready: this process has not computed the layers before, or keys and values before
                a row's first token are missing.
        """
        begins = start == max(self.first_layer, step.start)
        if not begins and self._reached.get(step.number) != start:
            raise ShardUnready(
                f"{self.address} has not computed the layers before {start} of step {step.number}"
            )
        places = [(self._kind(step), row.slot) for row in step.rows]
        for row, where in zip(step.rows, places, strict=True):
            last = self._last_step.get(where, -1)
            if last > step.number or (not begins and last != step.number):
                raise Ignore(f"step {step.number}: step {last} has been in {_spell(where)}")
            if begins:
                self._check_before(step, row, where)
        self._seen[(step.number, start)] = None
        _limit(self._seen, REMEMBERED_SPANS)
        if begins:
            for row, where in zip(step.rows, places, strict=True):
                self._last_step[where] = step.number
                self._filled[where] = row.stop

    def _kind(self, step: Step) -> str:
        return ENCODER_KV if step.start < self.encoder_layers else SLOT

    def _check_before(self, step: Step, row: Row, where: Where) -> None:
        """Is all there that a row goes on from?"""
        if row.encoder_kv is not None:
            place, length = row.encoder_kv
            self._check_source(step, (ENCODER_KV, place), length)
        if row.source is not None:
            self._check_source(step, (SLOT, row.source), row.start)
        elif row.start > self._filled.get(where, 0):
            raise ShardUnready(
                f"{self.address} has {self._filled.get(where, 0)} tokens in {_spell(where)}, step "
                f"{step.number} goes on at {row.start}"
            )

    def _check_source(self, step: Step, where: Where, length: int) -> None:
        """May the first `length` tokens be read from there?"""
        last, filled = self._last_step.get(where, -1), self._filled.get(where, 0)
        if last > step.number:
            raise Ignore(f"step {step.number}: step {last} has been in {_spell(where)}, its source")
        if length > filled:
            raise ShardUnready(
                f"{self.address} has {filled} tokens in {_spell(where)}, step {step.number} reads "
                f"{length} from there"
            )

    def done(self, number: int, stop: int) -> None:
        """The layers before `stop` are computed."""
        self._reached[number] = stop
        _limit(self._reached, REMEMBERED_STEPS)


def _spell(where: Where) -> str:
    return f"{where[0]} {where[1]}"


def _limit(table: dict[Any, Any], size: int) -> None:
    while len(table) > size:
        del table[next(iter(table))]
