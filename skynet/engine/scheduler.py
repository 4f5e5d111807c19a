"""Which sequences make up the next batch: iteration-level batching with chunked prefill.

Sequences join and leave between steps (Orca, Yu et al. 2022). With S stages up to S batches are in
flight, each with its share of the sequences, so that all stages have work.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator

from skynet.engine.sequence import EncoderKV, Sequence
from skynet.wire.step import Row


class Scheduler:
    """Waiting and running sequences, and the slots they run in. Pure bookkeeping."""

    def __init__(self, num_slots: int, num_batches: int, max_batch_tokens: int) -> None:
        self.num_batches = num_batches
        self.max_batch_tokens = max_batch_tokens
        self.num_slots = num_slots
        self.waiting: list[Sequence] = []  # in the order of their rank
        self.running: list[Sequence] = []
        self._free_slots = list(range(num_slots))
        self._free_encoder_kvs = list(range(num_slots))
        self._num_alone = 0
        self._turn_of_suspects = True
        self._turn_of_sources = True

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence: who has run before first, then by priority, then first come.

        Who runs is not interrupted for it.
        """
        insort(self.waiting, sequence, key=lambda item: item.rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its slots; if it is in flight, with `release` only."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if not sequence.in_flight:
            self.release(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free the slots and the memory of a sequence that was removed: its step is over."""
        for slot in sequence.slots:
            heapq.heappush(self._free_slots, slot)
        encoder_kv = sequence.encoder_kv
        if encoder_kv is not None:
            encoder_kv.num_users -= 1
            if not encoder_kv.num_users:
                heapq.heappush(self._free_encoder_kvs, encoder_kv.place)
        sequence.leave_place()

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
        self._free_encoder_kvs = list(range(self.num_slots))
        for sequence in self.waiting:
            sequence.leave_place()
        self._admit()

    def next_batch(self) -> list[tuple[Sequence, Row]]:
        """The rows of the next step, or none. Decodes first, then prompts in chunks.

        A sequence that searches with beams has a row for each. What an encoder is to read makes
        steps of its own, in turns with the others: their sequences say `to_read`.

        Marks the sequences as in flight; `computed` moves when the step is done.
        """
        self._admit()
        chosen = self._choose()
        sources = [sequence for sequence in chosen if sequence.to_read]
        others = [sequence for sequence in chosen if not sequence.to_read]
        if sources and (self._turn_of_sources or not others):
            self._turn_of_sources = False
            return self._sources(sources)
        self._turn_of_sources = True
        batch: list[tuple[Sequence, Row]] = []
        budget = self.max_batch_tokens
        for sequence in others:
            if budget <= 0:
                break
            if sequence.reading is not None and batch and sequence.length > budget:
                continue  # a text is read whole, if need be in a step of its own
            donor = self._donor(sequence)
            rows = sequence.next_rows(budget, None if donor is None else donor.slot)
            budget -= sum(len(row.tokens) for row in rows)
            sequence.in_flight = True
            batch += [(sequence, row) for row in rows]
        batch.sort(key=_place)
        return batch

    def _sources(self, sequences: list[Sequence]) -> list[tuple[Sequence, Row]]:
        """Whole prompts for the encoder, each of samples once, by length."""
        batch: list[tuple[Sequence, Row]] = []
        budget = self.max_batch_tokens
        for sequence in sequences:
            encoder_kv, length = sequence.encoder_kv, len(sequence.record.prompt)
            if encoder_kv is None or encoder_kv.in_flight or (batch and length > budget):
                continue
            budget -= length
            sequence.in_flight = encoder_kv.in_flight = True
            batch.append((sequence, sequence.source_row()))
        batch.sort(key=lambda item: len(item[1].tokens))
        return batch

    def _choose(self) -> list[Sequence]:
        """Who may be in the next batch: one suspect alone, or a share of all others, in turns."""
        idle = [
            sequence
            for sequence in self.running
            if not sequence.in_flight
            and not (sequence.encoder_kv and sequence.encoder_kv.in_flight)
            and not self._waits_for_prompt(sequence)
        ]
        suspects = [sequence for sequence in idle if sequence.suspect]
        others = [sequence for sequence in idle if not sequence.suspect]
        if suspects and (self._turn_of_suspects or not others):
            self._turn_of_suspects = False
            return [self._longest_not_alone(suspects)]
        self._turn_of_suspects = True
        share = -(-len(self.running) // self.num_batches)
        # Stable: who is nearest to its next token goes first, then first come first served.
        others.sort(key=lambda sequence: not sequence.is_near)
        return others[:share]

    def _donor(self, sequence: Sequence) -> Sequence | None:
        """Who has computed the prompt that a sequence begins with: another sample of it."""
        for other in self._samples(sequence):
            if other.computed >= len(sequence.prefix):
                return other
        return None

    def _waits_for_prompt(self, sequence: Sequence) -> bool:
        """Does another sample, which came first, compute the same prompt just now?"""
        if self._donor(sequence) is not None:
            return False
        return next(self._samples(sequence), sequence) is not sequence

    def _samples(self, sequence: Sequence) -> Iterator[Sequence]:
        """Running samples of the same prompt, in their order; none if it has nothing to take.

        Who is suspected to break steps neither gives nor takes; nor does one that is so long that
        its tokens are computed otherwise give to one that is not.
        """
        sample_group = sequence.record.sample_group
        if not sample_group or sequence.computed or sequence.suspect or len(sequence.prefix) < 2:
            return
        for other in self.running:
            alike = other.is_stretched == sequence.is_stretched and not other.suspect
            if other.record.sample_group == sample_group and alike:
                yield other

    def _longest_not_alone(self, suspects: list[Sequence]) -> Sequence:
        chosen = min(suspects, key=lambda sequence: sequence.last_alone)
        self._num_alone += 1
        chosen.last_alone = self._num_alone
        return chosen

    def _admit(self) -> None:
        """Who is first in line waits until there are slots for all of its beams."""
        while self.waiting and len(self._free_slots) >= self.waiting[0].num_slots:
            sequence = self.waiting.pop(0)
            slots = [heapq.heappop(self._free_slots) for _ in range(sequence.num_slots)]
            sequence.take_place(slots, self._encoder_kv_for(sequence))
            sequence.admitted = True
            self.running.append(sequence)

    def _encoder_kv_for(self, sequence: Sequence) -> EncoderKV | None:
        """A place for what is read of the prompt: that of another sample, or a free one."""
        if not sequence.has_source:
            return None
        sample_group = sequence.record.sample_group
        for other in self.running:
            if (
                sample_group
                and other.record.sample_group == sample_group
                and other.encoder_kv is not None
            ):
                other.encoder_kv.num_users += 1
                return other.encoder_kv
        return EncoderKV(heapq.heappop(self._free_encoder_kvs))


def _place(item: tuple[Sequence, Row]) -> tuple[int, int]:
    """By slot, since neighbours are computed in one call; texts that are read, by length."""
    row = item[1]
    return len(row.tokens) if row.text_task else 0, row.slot
