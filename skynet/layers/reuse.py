"""What a shard has of its weights already, when a plan gives it another slice.

Owns no tensors of its own: it finds them in the model that was loaded for the last plan, and can
take that model apart on the way, so that there are never two slices in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from skynet.layers.linear import Linear
from skynet.planning.ranges import Range

Made = Linear | torch.Tensor
Key = tuple[Any, ...]  # what it is, and its layer or None


@dataclass
class LoadedWeights:
    """Weights as they were made, by name: the roles they hold and the layer.

    Each comes with the range of units, of the dimension it is cut in, that it has of each role.
    """

    made: dict[Key, tuple[Made, tuple[Range, ...]]] = field(default_factory=dict)
    fetched_bytes: int = 0  # of what was made, what was not there before
    _dense: tuple[Key, torch.Tensor] | None = None  # the last one that was unpacked

    def add(self, key: Key, made: Made, units: tuple[Range, ...]) -> None:
        self.made[key] = (made, units)

    def same(self, key: Key, units: tuple[Range, ...]) -> Made | None:
        """The very thing, if it has exactly these units."""
        found = self.made.get(key)
        return found[0] if found is not None and found[1] == units else None

    def overlap(
        self, key: Key, at: int, units: Range, axis: int
    ) -> tuple[Range, torch.Tensor] | None:
        """Of the `at`-th role, the units that are here, and their rows (axis 0) or columns (1)."""
        found = self.made.get(key)
        if found is None:
            return None
        made, ranges = found
        both = units.overlap(ranges[at])
        if both.size == 0:
            return None
        before = sum(part.size for part in ranges[:at]) if axis == 0 else 0
        start = before + both.start - ranges[at].start
        return both, self._unpacked(key, made).narrow(axis, start, both.size)

    def forget(self, key: Key) -> None:
        """It has been used: free it."""
        self.made.pop(key, None)
        if self._dense is not None and self._dense[0] == key:
            self._dense = None

    def _unpacked(self, key: Key, made: Made) -> torch.Tensor:
        if isinstance(made, torch.Tensor):
            return made
        if self._dense is None or self._dense[0] != key:
            self._dense = (key, made.dense())
        return self._dense[1]


def without(units: Range, have: Range | None) -> list[Range]:
    """The parts of `units` that are not in `have`, which lies within it."""
    if have is None:
        return [units] if units.size else []
    parts = (Range(units.start, have.start), Range(have.stop, units.stop))
    return [part for part in parts if part.size]
