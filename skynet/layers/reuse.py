"""Reuse of weights: a shard's new slice takes weights from its previous one instead of fetching."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from skynet.layers.linear import Linear
from skynet.planning.ranges import Range

Made = Linear | torch.Tensor
Key = tuple[Any, ...]  # kind, tensor names and roles; last the layer number, or None


@dataclass
class LoadedWeights:
    """The products and tensors of a slice, each with its range of units of every role in it.

    A unit is an element of the dimension that the weight is cut in.
    """

    entries: dict[Key, tuple[Made, tuple[Range, ...]]] = field(default_factory=dict)
    _dense: tuple[Key, torch.Tensor] | None = None  # the last product that was unpacked

    def add(self, key: Key, made: Made, units: tuple[Range, ...]) -> None:
        self.entries[key] = (made, units)

    def get(self, key: Key, units: tuple[Range, ...]) -> Made | None:
        """The entry under `key`, if it has exactly these units."""
        made, loaded_units = self.entries.get(key, (None, ()))
        return made if loaded_units == units else None

    def overlap(
        self, key: Key, index: int, units: Range, axis: int
    ) -> tuple[Range, torch.Tensor] | None:
        """Of the role at `index`: the units loaded, and their rows (axis 0) or columns (axis 1)."""
        if key not in self.entries:
            return None
        made, ranges = self.entries[key]
        both = units.overlap(ranges[index])
        if both.size == 0:
            return None
        before = sum(part.size for part in ranges[:index]) if axis == 0 else 0
        start = before + both.start - ranges[index].start
        return both, self._unpacked(key, made).narrow(axis, start, both.size)

    def forget(self, key: Key) -> None:
        """Free an entry that is no longer needed."""
        self.entries.pop(key, None)
        if self._dense is not None and self._dense[0] == key:
            self._dense = None

    def forget_layers_outside(self, layers: Range) -> None:
        """Free the entries of layers that are not in `layers`."""
        for key in list(self.entries):
            if key[-1] is not None and key[-1] not in layers:
                self.forget(key)

    def _unpacked(self, key: Key, made: Made) -> torch.Tensor:
        if isinstance(made, torch.Tensor):
            return made
        if self._dense is None or self._dense[0] != key:
            self._dense = (key, made.dense())
        return self._dense[1]


class SliceWeights:
    """The weights of the slice that is being loaded, and the reusable ones of the previous slice.

    Reusable weights are freed one by one as their successors are made.
    """

    def __init__(self, reusable: LoadedWeights | None = None) -> None:
        self.loaded, self.reusable = LoadedWeights(), reusable or LoadedWeights()
        self.fetched_bytes = 0  # the bytes in memory of what was not reused
        self.fetched_of: dict[Key, int] = defaultdict(int)  # the same, of each table

    def get(self, key: Key, units: tuple[Range, ...]) -> Made | None:
        """The weight with exactly these units, from this slice or from the previous one."""
        made = self.loaded.get(key, units)
        return self.reusable.get(key, units) if made is None else made

    def add(self, key: Key, made: Made, units: tuple[Range, ...]) -> None:
        self.reusable.forget(key)
        self.loaded.add(key, made, units)


def without(units: Range, loaded: Range | None) -> list[Range]:
    """The parts of `units` that are not in `loaded`, which lies within it."""
    if loaded is None:
        return [units] if units.size else []
    parts = (Range(units.start, loaded.start), Range(loaded.stop, units.stop))
    return [part for part in parts if part.size]
