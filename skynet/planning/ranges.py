"""Half-open ranges, and ways to tile one: by weight, by cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from skynet.errors import PlanError
from skynet.wire.typed_json import Count


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """`[start, stop)`, never reversed."""

    start: Count
    stop: Count

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise PlanError(f"[{self.start}, {self.stop}) is not a range")

    @property
    def size(self) -> int:
        return self.stop - self.start

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.stop

    def overlap(self, other: Range) -> Range:
        """The intersection; empty, at `self.start` or later, if there is none."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.stop, other.stop)))


def check_tiling(ranges: Sequence[Range], total: int, what: str) -> None:
    """Raise PlanError unless `ranges` cover `[0, total)` in order, each index once."""
    position = 0
    for part in ranges:
        if part.start != position:
            raise PlanError(f"{what}: a part starts at {part.start}, expected {position}")
        position = part.stop
    if position != total:
        raise PlanError(f"{what}: parts end at {position}, expected {total}")


def split_by_weight(total: int, weights: Sequence[float], unit: int = 1) -> list[Range]:
    """Tile `[0, total)` in proportion to `weights`, cut at multiples of `unit`.

    Each boundary is the multiple of `unit` nearest to its ideal position, so no part is off by more
    than a unit. Parts may be empty.
    """
    if not weights or min(weights) < 0:
        raise PlanError(f"cannot split {total} by weights {list(weights)}")
    mass = sum(weights)
    if mass <= 0:
        weights, mass = [1.0] * len(weights), float(len(weights))
    bounds, running = [0], 0.0
    for weight in weights[:-1]:
        running += weight
        ideal = total * running / mass
        bounds.append(min(total, max(bounds[-1], round(ideal / unit) * unit)))
    bounds.append(total)
    return [Range(a, b) for a, b in pairwise(bounds)]


def split_evenly(total: int, parts: int) -> list[Range]:
    """Tile `[0, total)` into `parts` ranges whose sizes differ by one at most."""
    if parts < 1:
        raise PlanError(f"cannot split {total} into {parts} parts")
    bounds = [index * total // parts for index in range(parts + 1)]
    return [Range(a, b) for a, b in pairwise(bounds)]


def split_at_least(total: int, weights: Sequence[float]) -> list[Range]:
    """Tile `[0, total)` in proportion to `weights`, with at least 1 each (largest remainders)."""
    parts = len(weights)
    if parts > total or min(weights) <= 0:
        raise PlanError(f"cannot split {total} into {parts} non-empty parts by {list(weights)}")
    free, mass = total - parts, sum(weights)
    ideal = [max(0.0, total * weight / mass - 1) for weight in weights]
    scale = free / sum(ideal) if sum(ideal) > 0 else 0.0
    sizes = [1 + int(size * scale) for size in ideal]
    by_rest = sorted(range(parts), key=lambda part: int(ideal[part] * scale) - ideal[part] * scale)
    for part in by_rest[: total - sum(sizes)]:
        sizes[part] += 1
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    return [Range(a, b) for a, b in pairwise(bounds)]


def split_by_cost(costs: Sequence[float], speeds: Sequence[float]) -> list[Range]:
    """Cut a row of items into a non-empty run for each of `speeds`, so that the slowest is fastest.

    Dynamic programming over the prefix sums, O(parts x items^2); the items are at most some
    hundred layers.
    """
    count, parts = len(costs), len(speeds)
    if not 1 <= parts <= count:
        raise PlanError(f"cannot cut {count} items into {parts} non-empty runs")
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best = [[float("inf")] * (count + 1) for _ in range(parts + 1)]
    cut = [[0] * (count + 1) for _ in range(parts + 1)]
    best[0][0] = 0.0
    for part in range(1, parts + 1):
        for stop in range(part, count + 1):
            for start in range(stop - 1, part - 2, -1):  # ever longer runs
                seconds = (prefix[stop] - prefix[start]) / speeds[part - 1]
                if seconds > best[part][stop]:
                    break
                worst = max(best[part - 1][start], seconds)
                if worst <= best[part][stop]:
                    best[part][stop], cut[part][stop] = worst, start
    bounds = [count]
    for part in range(parts, 0, -1):
        bounds.append(cut[part][bounds[-1]])
    bounds.reverse()
    return [Range(a, b) for a, b in pairwise(bounds)]
