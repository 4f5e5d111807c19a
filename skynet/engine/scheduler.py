"""Which sequences make up the next batch: iteration-level batching with chunked prefill.

Sequences join and leave between steps (Orca, Yu et al. 2022). With S stages up to S batches are in
flight, each with its share of the sequences, so that all stages have work.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from skynet.engine.sequence import Sequence
from skynet.step import Row


class Scheduler:
    """Waiting and running sequences, and the slots they run in. Pure bookkeeping."""

    def __init__(self, num_slots: int, num_batches: int, max_batch_tokens: int) -> None:
        self.num_batches = num_batches
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._free_slots = list(range(num_slots))

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its slot."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = None

    def forget_computed(self) -> None:
        """Shards lost their slots: every running sequence is computed again from its tokens."""
        for sequence in self.running:
            sequence.computed = 0

    def next_batch(self) -> list[tuple[Sequence, Row]]:
        """The rows of the next step, or none. Decodes first, then prompts in chunks.

        Marks the sequences as in flight; `computed` moves when the step is done.
        """
        self._admit()
        idle = [sequence for sequence in self.running if not sequence.in_flight]
        share = -(-len(self.running) // self.num_batches)
        # Stable: who is nearest to its next token goes first, then first come first served.
        idle.sort(key=lambda sequence: sequence.length - sequence.computed > 1)
        batch: list[tuple[Sequence, Row]] = []
        budget = self.max_batch_tokens
        for sequence in idle[:share]:
            if budget == 0:
                break
            row = sequence.next_row(budget)
            budget -= len(row.tokens)
            sequence.in_flight = True
            batch.append((sequence, row))
        batch.sort(key=lambda item: item[1].slot)
        return batch

    def _admit(self) -> None:
        while self.waiting and self._free_slots:
            sequence = self.waiting.popleft()
            sequence.slot = heapq.heappop(self._free_slots)
            sequence.computed = 0
            self.running.append(sequence)
