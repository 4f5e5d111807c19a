"""The sequences of the next batch: iteration-level batching with chunked prefill.

Sequences join and leave between steps (Orca, Yu et al. 2022). With S stages up to S batches are in
flight, each with its share of the sequences, so that no stage is idle.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from skynet.engine.flight import Batch
from skynet.engine.modes.mode import Prefix
from skynet.engine.sample_groups import donor_of, waits_for_prompt
from skynet.engine.sequence import Sequence
from skynet.engine.slots import SlotPool
from skynet.wire.step import Row


class Scheduler:
    """Waiting and running sequences, and the slots they run in."""

    def __init__(
        self, num_slots: int, num_batches: int, max_batch_tokens: int, prefix_cache: bool = True
    ) -> None:
        self.num_batches = num_batches
        self.max_batch_tokens = max_batch_tokens
        self.slots = SlotPool(num_slots, prefix_cache)
        self.waiting: list[Sequence] = []  # by rank
        self.running: list[Sequence] = []
        self._num_alone = 0
        self._suspects_turn = True
        self._encoder_turn = True

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence by its rank; running ones are not preempted."""
        insort(self.waiting, sequence, key=lambda item: item.rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence; its slots are free now, or after `release` if it is in flight."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if not sequence.in_flight:
            self.release(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free the slots of a removed sequence whose step has finished."""
        self.slots.release(sequence)

    def reset(self, num_batches: int, num_slots: int | None = None) -> None:
        """Shards lost their slots: every sequence is computed again from its tokens.

        All keep their order, running ones before waiting ones, and get new slots.
        num_slots: of the new plan, None: as before; sequences without a slot wait in front.
        """
        self.num_batches = num_batches
        self.waiting = list(self)
        self.running = []
        self.slots = SlotPool(
            self.slots.num_slots if num_slots is None else num_slots, self.slots.contents.enabled
        )
        for sequence in self.waiting:
            sequence.leave_place()
        self._admit()

    def next_batch(self) -> Batch:
        """The rows of the next step, or none. Decodes first, then prompts in chunks.

        A batch is either of encoder inputs (`Sequence.needs_encoder`) or of all others; the two
        kinds alternate.

        Marks the sequences as in flight.
        """
        self._admit()
        chosen = self._choose()
        encoder = [sequence for sequence in chosen if sequence.needs_encoder]
        others = [sequence for sequence in chosen if not sequence.needs_encoder]
        if encoder and (self._encoder_turn or not others):
            self._encoder_turn = False
            return self._encoder_batch(encoder)
        self._encoder_turn = True
        batch: Batch = []
        budget = self.max_batch_tokens
        for sequence in others:
            if budget <= 0:
                break
            mode = sequence.mode
            if not mode.chunked and batch and mode.num_tokens > budget:
                continue  # it waits for an emptier step
            if self.slots.is_read(sequence):
                continue
            rows = sequence.rows(budget, self._known_prefix(sequence))
            self.slots.begin(sequence, rows)
            budget -= sum(len(row.tokens) for row in rows)
            sequence.in_flight = True
            batch += [(sequence, row) for row in rows]
        batch.sort(key=_place)
        return batch

    def note_end(self, batch: Batch, finished: bool) -> None:
        """A step has finished, or failed without a loss of the slots' earlier tokens."""
        rows = [row for sequence, row in batch if not sequence.needs_encoder]
        self.slots.end(rows, finished)

    def _known_prefix(self, sequence: Sequence) -> Prefix | None:
        """The tokens that a sequence without any in its slot can take from another, or from it."""
        donor = donor_of(sequence, self.running)
        if donor is not None:
            if not sequence.output.is_scored:
                known = len(sequence.output.prompt_logprobs)
                sequence.output.add_prompt_logprobs(donor.output.prompt_logprobs[known:])
            return Prefix(len(sequence.output.prefix) - 1, donor.slot)
        return self.slots.prefix_of(sequence)

    def _encoder_batch(self, sequences: list[Sequence]) -> Batch:
        """Whole prompts for the encoder, by length; one for all samples of a prompt."""
        batch: Batch = []
        budget = self.max_batch_tokens
        for sequence in sequences:
            encoder_kv, length = sequence.encoder_kv, len(sequence.record.prompt)
            if encoder_kv is None or encoder_kv.in_flight or (batch and length > budget):
                continue
            budget -= length
            sequence.in_flight = encoder_kv.in_flight = True
            batch.append((sequence, sequence.encoder_row()))
        batch.sort(key=lambda item: len(item[1].tokens))
        return batch

    def _choose(self) -> list[Sequence]:
        """Candidates for the next batch: one suspect alone, or a share of all others, in turns."""
        idle = [
            sequence
            for sequence in self.running
            if not sequence.in_flight
            and not (sequence.encoder_kv and sequence.encoder_kv.in_flight)
            and not waits_for_prompt(sequence, self.running)
        ]
        suspects = [sequence for sequence in idle if sequence.suspect]
        others = [sequence for sequence in idle if not sequence.suspect]
        if suspects and (self._suspects_turn or not others):
            self._suspects_turn = False
            suspect = min(suspects, key=lambda sequence: sequence.last_alone)
            self._num_alone += 1
            suspect.last_alone = self._num_alone
            return [suspect]
        self._suspects_turn = True
        share = -(-len(self.running) // self.num_batches)
        # A stable sort: decodes before prompts, then first come, first served.
        others.sort(key=lambda sequence: not sequence.mode.is_decoding)
        return others[:share]

    def _admit(self) -> None:
        """The first in the queue waits until all its slots are free."""
        while self.waiting and self.slots.can_allocate(self.waiting[0]):
            sequence = self.waiting.pop(0)
            self.slots.allocate(sequence, self.running)
            sequence.admitted = True
            self.running.append(sequence)


def _place(item: tuple[Sequence, Row]) -> tuple[int, int]:
    """By slot, since neighbouring slots are computed in one call; text tasks by length."""
    row = item[1]
    return len(row.tokens) if row.text_task else 0, row.slot
