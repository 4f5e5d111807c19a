"""Ranges tile exactly, by every way of cutting."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skynet.errors import PlanError
from skynet.planning.ranges import (
    Range,
    check_tiling,
    split_at_least,
    split_by_cost,
    split_by_weight,
    split_evenly,
)


@given(
    total=st.integers(0, 5000),
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=12),
    unit=st.sampled_from([1, 7, 32]),
)
def test_by_weight_tiles_and_is_off_by_a_unit_at_most(
    total: int, weights: list[float], unit: int
) -> None:
    # When a total is split by any weights
    ranges = split_by_weight(total, weights, unit)
    # Then the parts tile it, and inner boundaries are near their ideal place
    check_tiling(ranges, total, "total")
    mass = sum(weights)
    if mass > 0:
        for part, running in zip(ranges, itertools.accumulate(weights), strict=True):
            assert abs(part.stop - total * running / mass) <= unit


@given(total=st.integers(0, 5000), parts=st.integers(1, 40))
def test_evenly_differs_by_one(total: int, parts: int) -> None:
    # When a total is split evenly
    sizes = [part.size for part in split_evenly(total, parts)]
    # Then nothing is lost and sizes differ by one at most
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1


@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=8), data=st.data())
def test_by_cost_minimises_the_most_expensive_run(costs: list[int], data: st.DataObject) -> None:
    # Given any row of costs
    parts = data.draw(st.integers(1, len(costs)))
    # When it is cut
    runs = split_by_cost(costs, [1.0] * parts)
    # Then no other cut has a cheaper dearest run
    check_tiling(runs, len(costs), "items")
    cuts = itertools.combinations(range(1, len(costs)), parts - 1)
    bounds = [(0, *cut, len(costs)) for cut in cuts]
    best = min(max(sum(costs[a:b]) for a, b in itertools.pairwise(bound)) for bound in bounds)
    assert max(sum(costs[run.start : run.stop]) for run in runs) == best
    assert all(run.size > 0 for run in runs)


@given(
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=7),
    speeds=st.lists(st.sampled_from([0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=7),
)
def test_by_cost_gives_the_fast_more(costs: list[int], speeds: list[float]) -> None:
    # Given runs for workers of different speeds
    speeds = speeds[: len(costs)]
    # When a row of costs is cut
    runs = split_by_cost(costs, speeds)
    # Then no other cut is done sooner
    check_tiling(runs, len(costs), "items")
    assert all(run.size > 0 for run in runs)

    def slowest(bound: tuple[int, ...]) -> float:
        spans = zip(itertools.pairwise(bound), speeds, strict=True)
        return max(sum(costs[a:b]) / speed for (a, b), speed in spans)

    cuts = itertools.combinations(range(1, len(costs)), len(speeds) - 1)
    best = min(slowest((0, *cut, len(costs))) for cut in cuts)
    assert slowest((0, *(run.stop for run in runs))) == pytest.approx(best)


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=12), extra=st.integers(0, 200))
def test_at_least_gives_every_part_a_minimum(weights: list[float], extra: int) -> None:
    # Given at least one for each
    total = len(weights) + extra
    # When they are divided by weights
    sizes = [part.size for part in split_at_least(total, weights)]
    # Then they tile, every part has a unit, and a larger weight never gives a smaller part
    assert sum(sizes) == total
    assert min(sizes) >= 1
    pairs = list(zip(weights, sizes, strict=True))
    for (weight, size), (other, less) in itertools.permutations(pairs, 2):
        assert weight <= other or size >= less
    # And where all fair shares are one or more, no part is further from its share than one
    fair = [total * weight / sum(weights) for weight in weights]
    if min(fair) >= 1:
        assert all(abs(a - b) < 1 + 1e-6 for a, b in zip(fair, sizes, strict=True))


@pytest.mark.parametrize(("total", "weights"), [(2, [1.0, 1.0, 1.0]), (5, [1.0, 0.0])])
def test_too_many_parts_and_parts_without_weight_are_refused(
    total: int, weights: list[float]
) -> None:
    # When / Then the error has the numbers
    with pytest.raises(PlanError, match=f"cannot split {total} into {len(weights)} non-empty"):
        split_at_least(total, weights)


def test_an_invalid_range_is_refused() -> None:
    # When / Then a reversed or negative range is refused with its numbers
    with pytest.raises(PlanError, match=r"\[5, 3\)"):
        Range(5, 3)
    with pytest.raises(PlanError, match=r"\[-1, 3\)"):
        Range(-1, 3)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([Range(0, 2), Range(3, 5)], "starts at 3, expected 2"),
        ([Range(0, 2), Range(1, 5)], "starts at 1, expected 2"),
        ([Range(0, 2)], "end at 2, expected 5"),
    ],
)
def test_gaps_and_overlaps_are_no_tiling(ranges: list[Range], message: str) -> None:
    # When / Then a gap, an overlap or a missing end is named
    with pytest.raises(PlanError, match=message):
        check_tiling(ranges, 5, "columns")


@given(
    a=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    b=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_overlap_is_the_intersection(a: tuple[int, int], b: tuple[int, int]) -> None:
    # Given two ranges
    one, other = (Range(min(pair), max(pair)) for pair in (a, b))
    # When they overlap
    both = one.overlap(other)
    # Then the overlap has exactly the indices that are in both
    assert set(range(both.start, both.stop)) == {i for i in range(41) if i in one and i in other}
