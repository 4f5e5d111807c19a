"""Recurrent state in slots: that after a sequence's last step, and the one before to go back to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.architecture.mixers import STATES
from skynet.errors import StepFailed
from skynet.kernels.recurrent import States
from skynet.kernels.steps import Program
from skynet.layers.cache import KVLayout, zeros
from skynet.wire.step import Row

NONE = -1  # tokens of a state that must not be used


class RecurrentState:
    """Float32 tensors for each sequence, and after how many tokens they are its state.

    Steps are never written over the state that they continue, so that a step that failed, here or
    in another shard, can come again.
    """

    def __init__(
        self, layout: KVLayout, shapes: Sequence[tuple[int, ...]], device: torch.device
    ) -> None:
        """shapes: of one sequence's tensors."""
        count = layout.num_slots
        self._values = [zeros((STATES, count, *shape), torch.float32, device) for shape in shapes]
        self._tokens = [[NONE] * STATES for _ in range(count)]
        self._places = torch.zeros(count, STATES, dtype=torch.int64)  # of the kernels' step
        self._numbers = self._places.numpy()  # the same memory

    def read(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """The states before these rows, (rows, *shape) of each tensor; a new sequence's is zeros.

        Raises:
            StepFailed: a slot has no state after just the tokens before its row.
        """
        places = [self._place(row.slot, row.start) for row in rows]
        slots = [row.slot for row in rows]
        read = [values[places, slots] for values in self._values]
        for index, row in enumerate(rows):
            if not row.start:
                for values in read:
                    values[index] = 0
        return read

    def write(self, rows: Sequence[Row], new: Sequence[torch.Tensor]) -> None:
        """The states after these rows, as `read` returns them."""
        places = [place for _, place in self._advance(rows)]
        slots = [row.slot for row in rows]
        for values, states in zip(self._values, new, strict=True):
            values[places, slots] = states

    def for_kernels(self, program: Program) -> list[States]:
        """The tensors for the operations of a program, which read and write states themselves."""
        program.before(self._prepare)
        return [States(values, self._places) for values in self._values]

    def _prepare(self, rows: Sequence[Row]) -> None:
        """`read` and `write` of the kernels' next step, save the values.

        Raises:
            StepFailed: as `read`.
        """
        for row, places in zip(rows, self._advance(rows), strict=True):
            self._numbers[row.slot] = places

    def _advance(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """Go on to the states after these rows: where each reads, `NONE` for zeros, and writes."""
        sources = [self._place(row.slot, row.start) for row in rows]
        for row, source in zip(rows, sources, strict=True):
            tokens = self._tokens[row.slot]
            tokens[1 - source] = row.stop
            if not row.start:
                tokens[source] = NONE
        pairs = zip(rows, sources, strict=True)
        return [(source if row.start else NONE, 1 - source) for row, source in pairs]

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `SlotState.copy_slot`."""
        if tokens:
            place = self._place(source, tokens)
            for values in self._values:
                values[0, target] = values[place, source]
        self._tokens[target] = [tokens or NONE, NONE]

    def clear(self, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """See `SlotState.clear`."""
        starts: dict[int, int] = {}
        for slot, position in zip(slots.tolist(), positions.tolist(), strict=True):
            starts[slot] = min(position, starts.get(slot, position))
        for slot, start in starts.items():
            self._tokens[slot] = [at if at <= start else NONE for at in self._tokens[slot]]

    def _place(self, slot: int, tokens: int) -> int:
        """Which of the slot's states is the one after so many tokens."""
        if not tokens:
            return 0
        if tokens not in self._tokens[slot]:
            raise StepFailed(
                f"slot {slot} has states after {self._tokens[slot]} tokens, and none after "
                f"{tokens}: a recurrent state cannot be continued from another token"
            )
        return self._tokens[slot].index(tokens)
