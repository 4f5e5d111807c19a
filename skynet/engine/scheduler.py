"""Which sequences make up the next batch: iteration-level batching with chunked prefill.

Sequences join and leave between steps (Orca, Yu et al. 2022). With S stages up to S batches are in
flight, each with its share of the sequences, so that all stages have work.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator

from skynet.engine.sequence import Sequence
from skynet.step import Row


class Scheduler:
    """Waiting and running sequences, and the slots they run in. Pure bookkeeping."""

    def __init__(self, num_slots: int, num_batches: int, max_batch_tokens: int) -> None:
        self.num_batches = num_batches
        self.max_batch_tokens = max_batch_tokens
        self.num_slots = num_slots
        self.waiting: list[Sequence] = []  # in the order of their rank
        self.running: list[Sequence] = []
        self._free_slots = list(range(num_slots))
        self._num_alone = 0
        self._turn_of_suspects = True

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence: who has run before first, then by priority, then first come.

        Who runs is not interrupted for it.
        """
        insort(self.waiting, sequence, key=lambda item: item.rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its slot; if it is in flight, with `release` only."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if not sequence.in_flight:
            self.release(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free the slot of a sequence that was removed: its step is over."""
        if sequence.slot is not None:
            heapq.heappush(self._free_slots, sequence.slot)
            sequence.slot = None

    def reset(self, num_batches: int, num_slots: int | None = None) -> None:
        """Shards lost their slots: every sequence is computed again from its tokens.

        All keep their order, those that run before those that wait; slots are given anew.
        num_slots: of the new plan, if it has another number; who finds no slot waits in front.
        """
        self.num_batches = num_batches
        self.num_slots = self.num_slots if num_slots is None else num_slots
        self.waiting = list(self)
        self.running = []
        self._free_slots = list(range(self.num_slots))
        for sequence in self.waiting:
            sequence.slot, sequence.computed, sequence.in_flight = None, 0, False
        self._admit()

    def next_batch(self) -> list[tuple[Sequence, Row]]:
        """The rows of the next step, or none. Decodes first, then prompts in chunks.

        Marks the sequences as in flight; `computed` moves when the step is done.
        """
        self._admit()
        batch: list[tuple[Sequence, Row]] = []
        budget = self.max_batch_tokens
        for sequence in self._choose():
            if budget == 0:
                break
            donor = self._donor(sequence)
            row = sequence.next_row(budget, None if donor is None else donor.slot)
            budget -= len(row.tokens)
            sequence.in_flight = True
            batch.append((sequence, row))
        batch.sort(key=lambda item: item[1].slot)
        return batch

    def _choose(self) -> list[Sequence]:
        """Who may be in the next batch: one suspect alone, or a share of all others, in turns."""
        idle = [
            sequence
            for sequence in self.running
            if not sequence.in_flight and not self._waits_for_prompt(sequence)
        ]
        suspects = [sequence for sequence in idle if sequence.suspect]
        others = [sequence for sequence in idle if not sequence.suspect]
        if suspects and (self._turn_of_suspects or not others):
            self._turn_of_suspects = False
            return [self._longest_not_alone(suspects)]
        self._turn_of_suspects = True
        share = -(-len(self.running) // self.num_batches)
        # Stable: who is nearest to its next token goes first, then first come first served.
        others.sort(key=lambda sequence: sequence.length - sequence.computed > 1)
        return others[:share]

    def _donor(self, sequence: Sequence) -> Sequence | None:
        """Who has computed the prompt that a sequence begins with: another sample of it."""
        for other in self._samples(sequence):
            if other.computed >= len(sequence.record.prompt):
                return other
        return None

    def _waits_for_prompt(self, sequence: Sequence) -> bool:
        """Does another sample, which came first, compute the same prompt just now?"""
        if self._donor(sequence) is not None:
            return False
        return next(self._samples(sequence), sequence) is not sequence

    def _samples(self, sequence: Sequence) -> Iterator[Sequence]:
        """Running samples of the same prompt, in their order; none if it has nothing to take.

        Who is suspected to break steps neither gives nor takes.
        """
        family = sequence.record.family
        if not family or sequence.computed or sequence.suspect or len(sequence.record.prompt) < 2:
            return
        for other in self.running:
            if other.record.family == family and not other.suspect:
                yield other

    def _longest_not_alone(self, suspects: list[Sequence]) -> Sequence:
        chosen = min(suspects, key=lambda sequence: sequence.last_alone)
        self._num_alone += 1
        chosen.last_alone = self._num_alone
        return chosen

    def _admit(self) -> None:
        while self.waiting and self._free_slots:
            sequence = self.waiting.pop(0)
            sequence.slot = heapq.heappop(self._free_slots)
            sequence.computed = 0
            sequence.admitted = True
            self.running.append(sequence)
