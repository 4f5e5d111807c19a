"""The tokens whose keys and values lie in each slot, of running and of ended sequences.

Follows the rows of steps, as the shards do. Knows neither sequences nor which slots are free.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from skynet.engine.output import KVKind
from skynet.wire.step import Row

MIN_PREFIX = 16  # tokens; shorter common prefixes are computed again
Ids = npt.NDArray[np.intc]


def _array(ids: Sequence[int] = ()) -> array[int]:
    """Of C ints: it grows as a list does, and numpy compares it."""
    return array("i", ids)


@dataclass
class SlotContent:
    """One slot.

    num_valid: its leading tokens that finished steps have stored; later ones are in flight.
    kind: of its keys and values; None: no other sequence may use them.
    last_used: 0: never, or another slot holds the same tokens.
    num_readers: rows in flight that copy from it; it must not be written to.
    """

    tokens: array[int] = field(default_factory=_array)
    num_valid: int = 0
    kind: KVKind | None = None
    last_used: int = 0
    num_readers: int = 0

    @property
    def is_useful(self) -> bool:
        """Whether a sequence could take a prefix from it."""
        return self.kind is not None and self.num_valid >= MIN_PREFIX

    def common(self, tokens: Ids) -> int:
        """How many leading tokens it shares with others."""
        count = min(self.num_valid, len(tokens))
        differs = np.frombuffer(self.tokens, np.intc, count) != tokens[:count]
        first = int(differs.argmax())
        return first if differs[first] else count

    def is_within(self, other: SlotContent) -> bool:
        """Whether another slot holds all of its tokens."""
        count = self.num_valid
        if other.kind != self.kind or other.num_valid < count:
            return False
        if other.tokens[count - 1] != self.tokens[count - 1]:  # most slots end here
            return False
        return other.common(np.frombuffer(self.tokens, np.intc, count)) == count

    def forget(self) -> None:
        """Its tokens are of no use to others."""
        self.tokens, self.num_valid, self.kind, self.last_used = _array(), 0, None, 0


class SlotContents:
    """The contents of all slots.

    enabled: False: slots are followed no further than which of them are copied from.
    """

    def __init__(self, num_slots: int, enabled: bool = True) -> None:
        self.enabled = enabled
        self._contents = [SlotContent() for _ in range(num_slots)]
        self._clock = 0

    def __getitem__(self, slot: int) -> SlotContent:
        return self._contents[slot]

    def common(
        self, slots: Iterable[int], tokens: Sequence[int], kind: KVKind | None
    ) -> dict[int, int]:
        """How many leading tokens of a sequence lie in these slots, where it is enough of them."""
        if not self.enabled or kind is None or len(tokens) < MIN_PREFIX:
            return {}
        head = _array(tokens[:MIN_PREFIX])
        alike = [
            slot
            for slot in slots
            if self[slot].kind == kind
            and self[slot].is_useful
            and self[slot].tokens[:MIN_PREFIX] == head
        ]
        whole = np.array(tokens if alike else (), np.intc)
        return {slot: self[slot].common(whole) for slot in alike}

    def begin(self, row: Row, kind: KVKind | None) -> None:
        """A step is about to write a row's tokens; `kind` is of their keys and values."""
        target, kept = self[row.slot], row.start
        if row.source is not None:
            source = self[row.source]
            source.num_readers += 1
            self._touch(source)
            target.tokens, target.kind, target.num_valid = source.tokens[:kept], source.kind, 0
        elif not kept:
            target.kind = kind
        if not self.enabled or kind is None or target.kind != kind or len(target.tokens) < kept:
            target.forget()
            return
        del target.tokens[kept:]
        target.tokens.extend(row.tokens)
        target.num_valid = min(target.num_valid, kept)

    def end(self, row: Row, finished: bool) -> None:
        """The step has finished, or failed and left the slots as far as they were valid."""
        if row.source is not None:
            self[row.source].num_readers -= 1
        target = self[row.slot]
        if finished and target.kind is not None:
            target.num_valid = row.stop

    def leave(self, slot: int) -> None:
        """The slot's sequence has ended: of equal contents only one is worth to be kept."""
        content = self[slot]
        if not content.is_useful:
            content.forget()
            return
        self._touch(content)
        for other in self._contents:
            if other is content or not other.is_useful:
                continue
            if content.is_within(other):
                content.last_used = 0
            elif other.is_within(content):
                other.last_used = 0

    def _touch(self, content: SlotContent) -> None:
        self._clock += 1
        content.last_used = self._clock
