"""Which slots of the shards are free, which one a sequence gets, and what it need not compute.

The prefix cache: slots keep the tokens of ended sequences until they are needed. A new sequence
continues in a free slot that holds its first tokens, or copies them from any slot.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from skynet.engine.modes.mode import Prefix
from skynet.engine.sequence import EncoderKV, Sequence
from skynet.engine.slot_contents import MIN_PREFIX, SlotContents
from skynet.wire.step import Row

MAX_LOST = 16  # tokens after a prefix that may be overwritten; more are worth a copy


class SlotPool:
    """Slots of the KV cache and their contents, and as many places for encoder KV.

    prefix_cache: whether sequences use what others have computed.
    """

    def __init__(self, num_slots: int, prefix_cache: bool = True) -> None:
        self.num_slots = num_slots
        self.free = set(range(num_slots))
        self.free_encoder_kv = list(range(num_slots))
        self.contents = SlotContents(num_slots, prefix_cache)
        self._owners: dict[int, Sequence] = {}

    def can_allocate(self, sequence: Sequence) -> bool:
        """Whether all slots are free that it needs at once."""
        return len(self.free) >= sequence.mode.num_slots

    def allocate(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """Free slots for a sequence: the one that holds its first tokens, then the least useful.

        running: sequences whose encoder KV it may share.
        """
        order = sorted(self.free, key=lambda slot: (self._last_used(slot), slot))
        best = self._to_continue(sequence, order)
        if best is not None:
            order.remove(best)
            order.insert(0, best)
        slots = order[: sequence.mode.num_slots]
        self.free.difference_update(slots)
        self._owners |= dict.fromkeys(slots, sequence)
        encoder_kv = self._encoder_kv(sequence, running) if sequence.has_encoder else None
        sequence.take_place(slots, encoder_kv)

    def release(self, sequence: Sequence) -> None:
        for slot in sequence.slots:
            if sequence.suspect:
                self.contents[slot].forget()
            self.contents.leave(slot)
            del self._owners[slot]
            self.free.add(slot)
        encoder_kv = sequence.encoder_kv
        if encoder_kv is not None:
            encoder_kv.num_users -= 1
            if not encoder_kv.num_users:
                heapq.heappush(self.free_encoder_kv, encoder_kv.place)
        sequence.leave_place()

    def is_read(self, sequence: Sequence) -> bool:
        """Whether a step in flight copies from one of its slots, for itself or an earlier owner.

        A step that writes to them could reach a later stage before that step.
        """
        return any(self.contents[slot].num_readers for slot in sequence.slots)

    def prefix_of(self, sequence: Sequence) -> Prefix | None:
        """The longest prefix that lies in its first slot, or in another one to be copied from."""
        first = sequence.slot
        if first is None or not sequence.mode.unfilled:
            return None
        counts = self._common(range(self.num_slots), sequence)
        best = Prefix(counts.pop(first, 0))
        for slot in sorted(counts, key=self._owners.__contains__):  # free slots first
            owner = self._owners.get(slot)
            is_longer = counts[slot] >= best.num_tokens + MIN_PREFIX
            if is_longer and (owner is None or not owner.suspect):
                best = Prefix(counts[slot], slot)
        return best if best.num_tokens else None

    def begin(self, sequence: Sequence, rows: Iterable[Row]) -> None:
        """Rows of a sequence are in the next step."""
        for row in rows:
            self.contents.begin(row, sequence.output.kv_kind(max(row.prompt_length, row.stop)))

    def end(self, rows: Iterable[Row], finished: bool) -> None:
        """A step has finished, or failed without a loss of the slots' earlier tokens."""
        for row in rows:
            self.contents.end(row, finished)

    def _last_used(self, slot: int) -> int:
        content = self.contents[slot]
        return content.last_used if content.is_useful else 0

    def _common(self, slots: Iterable[int], sequence: Sequence) -> dict[int, int]:
        """How many leading tokens of a sequence lie in these slots; its last one is computed."""
        if sequence.suspect:
            return {}
        return self.contents.common(slots, sequence.mode.unfilled[:-1], sequence.kv_kind)

    def _to_continue(self, sequence: Sequence, order: list[int]) -> int | None:
        """The free slot with the longest prefix, unless a copy keeps tokens that follow it there.

        order: free slots, the least useful first.
        """
        counts = self._common(order, sequence)
        best = max(counts, key=counts.__getitem__, default=None)
        if best is None:
            return None
        lost = self.contents[best].num_valid - counts[best]
        return best if lost <= MAX_LOST or best == order[0] else None

    def _encoder_kv(self, sequence: Sequence, running: Iterable[Sequence]) -> EncoderKV:
        """Another sample's place, or a free one."""
        sample_group = sequence.record.sample_group
        for other in running:
            shared = other.encoder_kv
            if sample_group and other.record.sample_group == sample_group and shared is not None:
                shared.num_users += 1
                return shared
        return EncoderKV(heapq.heappop(self.free_encoder_kv))
