"""Which slots of the shards are free, and which sequences share an encoder output."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from skynet.engine.sequence import EncoderKV, Sequence


class SlotPool:
    """Slots of the KV cache, and as many places for encoder KV; the lowest free one goes first."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.free = list(range(num_slots))
        self.free_encoder_kv = list(range(num_slots))

    def can_allocate(self, sequence: Sequence) -> bool:
        """Whether all slots are free that it needs at once."""
        return len(self.free) >= sequence.mode.num_slots

    def allocate(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """`running`: sequences whose encoder KV it may share."""
        slots = [heapq.heappop(self.free) for _ in range(sequence.mode.num_slots)]
        encoder_kv = self._encoder_kv(sequence, running) if sequence.has_encoder else None
        sequence.take_place(slots, encoder_kv)

    def release(self, sequence: Sequence) -> None:
        for slot in sequence.slots:
            heapq.heappush(self.free, slot)
        encoder_kv = sequence.encoder_kv
        if encoder_kv is not None:
            encoder_kv.num_users -= 1
            if not encoder_kv.num_users:
                heapq.heappush(self.free_encoder_kv, encoder_kv.place)
        sequence.leave_place()

    def _encoder_kv(self, sequence: Sequence, running: Iterable[Sequence]) -> EncoderKV:
        """Another sample's place, or a free one."""
        sample_group = sequence.record.sample_group
        for other in running:
            shared = other.encoder_kv
            if sample_group and other.record.sample_group == sample_group and shared is not None:
                shared.num_users += 1
                return shared
        return EncoderKV(heapq.heappop(self.free_encoder_kv))
