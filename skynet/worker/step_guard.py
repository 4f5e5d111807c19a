"""Decides which spans a shard may run, from those it has run under the same plan.

Messages may arrive twice, late, out of order or not at all. A span runs at most once, after the
spans before it, on slots that this process filled; anything else would silently give wrong tokens.
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore

from skynet.errors import ShardUnready, WireError
from skynet.planning.plan import Plan
from skynet.wire.step import Row, Step

REMEMBERED_SPANS = 4096
REMEMBERED_STEPS = 64
SLOT, ENCODER_KV = "slot", "encoder KV"

# A store of keys and values: a sequence's slot, or a text's encoder KV, by kind and index.
KVStore = tuple[str, int]


class StepGuard:
    """The spans of one epoch at one address.

    encoder_layers: number of encoder layers; a step that starts in one of them is of texts and
        fills encoder KV.
    """

    def __init__(self, address: str, first_layer: int, encoder_layers: int = 0) -> None:
        self.address = address
        self.first_layer = first_layer
        self.encoder_layers = encoder_layers
        self.steps: dict[int, tuple[Step, bytes]] = {}  # decoded and encoded
        self._seen: dict[tuple[int, int], None] = {}  # (step, layer), oldest first
        self._reached: dict[int, int] = {}  # step -> its next layer
        self._filled: dict[KVStore, int] = {}  # number of tokens
        self._last_step: dict[KVStore, int] = {}  # the last step that wrote to it

    def remember(self, step: Step, rows: bytes) -> None:
        """Keep a step for its later spans."""
        self.steps[step.number] = (step, rows)
        _limit(self.steps, REMEMBERED_STEPS)

    def check_step(self, step: Step, plan: Plan, number: int) -> None:
        """Refuse a step that is not the one of its message, or that does not fit the plan.

        Raises:
            WireError: another epoch or number, or a row beyond the slots.
        """
        if (step.epoch, step.number) != (plan.epoch, number) or not step.rows:
            raise WireError(
                f"the rows of step {number} of epoch {plan.epoch} are of step {step.number} of "
                f"epoch {step.epoch}"
            )
        for row in step.rows:
            slots = [row.slot, row.source or 0, row.encoder_kv[0] if row.encoder_kv else 0]
            if max(slots) >= plan.num_slots or row.stop > plan.slot_tokens:
                raise WireError(
                    f"step {number}: slot {max(slots)} up to token {row.stop}, of {plan.num_slots} "
                    f"slots of {plan.slot_tokens} tokens"
                )

    def check(self, number: int, start: int) -> None:
        """Refuse a duplicate of the span of step `number` that starts at layer `start`.

        Raises:
            Ignore: the span was run before.
        """
        if (number, start) in self._seen:
            raise Ignore(f"step {number}: layer {start} came twice")

    def admit(self, step: Step, start: int) -> None:
        """Refuse a span that must not run; a step that begins here claims the stores it writes to.

        Raises:
            Ignore: a later step has written to one of the stores.
            ShardUnready: this process has not computed the layers before, or keys and values before
                a row's first token are missing.
        """
        begins = start == max(self.first_layer, step.start)
        if not begins and self._reached.get(step.number) != start:
            raise ShardUnready(
                f"{self.address} has not computed the layers before {start} of step {step.number}"
            )
        stores = [(self._kind(step), row.slot) for row in step.rows]
        for row, store in zip(step.rows, stores, strict=True):
            last = self._last_step.get(store, -1)
            if last > step.number or (not begins and last != step.number):
                raise Ignore(f"step {step.number}: step {last} has written to {_spell(store)}")
            if begins:
                self._check_before(step, row, store)
        self._seen[(step.number, start)] = None
        _limit(self._seen, REMEMBERED_SPANS)
        if begins:
            for row, store in zip(step.rows, stores, strict=True):
                self._last_step[store] = step.number
                self._filled[store] = row.stop

    def _kind(self, step: Step) -> str:
        return ENCODER_KV if step.start < self.encoder_layers else SLOT

    def _check_before(self, step: Step, row: Row, store: KVStore) -> None:
        """Check the keys and values that a row attends to."""
        if row.encoder_kv is not None:
            index, length = row.encoder_kv
            self._check_source(step, (ENCODER_KV, index), length)
        if row.source is not None:
            self._check_source(step, (SLOT, row.source), row.start)
        elif row.start > self._filled.get(store, 0):
            raise ShardUnready(
                f"{self.address} has {self._filled.get(store, 0)} tokens in {_spell(store)}, step "
                f"{step.number} continues at {row.start}"
            )

    def _check_source(self, step: Step, store: KVStore, length: int) -> None:
        """Check that a store has the first `length` tokens."""
        last, filled = self._last_step.get(store, -1), self._filled.get(store, 0)
        if last > step.number:
            raise Ignore(
                f"step {step.number}: step {last} has written to its source {_spell(store)}"
            )
        if length > filled:
            raise ShardUnready(
                f"{self.address} has {filled} tokens in {_spell(store)}, step {step.number} reads "
                f"{length} of it"
            )

    def done(self, number: int, stop: int) -> None:
        """The layers before `stop` are computed."""
        self._reached[number] = stop
        _limit(self._reached, REMEMBERED_STEPS)


def _spell(store: KVStore) -> str:
    return f"{store[0]} {store[1]}"


def _limit(table: dict[Any, Any], size: int) -> None:
    while len(table) > size:
        del table[next(iter(table))]
