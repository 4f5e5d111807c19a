"""What `skynet plan` says of shapes: sizes, what is missing, what is recommended and why. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from skynet.models.registry import load_architecture
from skynet.planning.cost import WORKER_BYTES, Candidate
from skynet.planning.forecast import (
    ENOUGH,
    Forecast,
    Question,
    forecast,
    forecasts,
    recommended,
    slower_from,
)
from skynet.planning.split import PlanOptions
from skynet.planning.timing import Costs

GIB = 2**30
LARGE = load_architecture(
    {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    }
)
LARGE_WEIGHTS = 70.55e9
COUNTS = (2, 4, 8, 16, 32, 64)


def question(weights: str = "bfloat16", **costs: Any) -> Question:
    costs = {"wire_bytes_per_s": 125e6, **costs}
    return Question(LARGE, PlanOptions("", "large"), weights, Costs(**costs))


def members(count: int = 64, gib: float = 64, **fields: Any) -> list[Candidate]:
    made = {"cores": 16, "round_trip_s": 4e-4, "free_bytes": int(gib * GIB), **fields}
    return [Candidate(f"worker{n}", **made) for n in range(count)]


def best_of(made: list[Forecast]) -> dict[int, float]:
    """Number of workers -> tokens per second of the fastest shape that fits."""
    best: dict[int, float] = {}
    for each in made:
        if not each.problem:
            best[each.workers] = max(each.one, best.get(each.workers, 0.0))
    return best


@pytest.mark.parametrize("link", ["redis", "direct"])
def test_up_to_64_workers_more_are_faster_or_the_reason_is_named(link: str) -> None:
    # Given a model of 70 billion weights / When all shapes of up to 64 workers are predicted
    made = forecasts(question(link=link), COUNTS, members())
    # Then there is every shape, and those that fit have sane numbers
    assert {each.shape for each in made} == {
        f"{stages}x{count // stages}"
        for count in COUNTS
        for stages in range(1, 65)
        if count % stages == 0
    }
    for each in made:
        if not each.problem:
            assert 0 < each.one <= each.many
            assert each.first_token_s > 0
            share = 2 * LARGE_WEIGHTS / each.workers
            assert share < each.weight_bytes + each.weight_bytes * 0.35
    # And more workers are faster up to a number, from which on the reason is named
    best = best_of(made)
    fastest = max(best, key=lambda count: (best[count], -count))
    rising = [best[count] for count in sorted(best) if count <= fastest]
    assert rising == sorted(rising)
    slower = slower_from(made)
    if fastest < max(best):
        assert slower is not None
        assert slower[0] == min(count for count in best if count > fastest)
        assert "round trip" in slower[1]


def test_the_smallest_number_of_workers_that_is_nearly_as_fast_is_recommended() -> None:
    made = forecasts(question(), COUNTS, members())
    chosen = recommended(made)
    assert chosen is not None
    best = best_of(made)
    assert chosen[0].one >= ENOUGH * max(best.values())
    assert all(
        rate < ENOUGH * max(best.values()) for n, rate in best.items() if n < chosen[0].workers
    )
    assert chosen[1]


def test_a_slow_network_makes_fewer_shards_the_best() -> None:
    # Given a fast and a slow network
    shards = []
    for trip in (1e-4, 2e-2):
        chosen = recommended(forecasts(question(), (8,), members(8, round_trip_s=trip)))
        assert chosen is not None
        shards.append(chosen[0].shards)
    # Then the slow one's sums are not worth it
    assert shards[0] > shards[1] == 1


def test_what_does_not_fit_says_what_is_missing() -> None:
    # Given workers with too little memory for two, and a model with 64 heads
    made = {each.shape: each for each in forecasts(question(), (2, 4), members(4))}
    assert "would need" in made["1x2"].problem
    assert "has 65536 MiB" in made["1x2"].problem
    assert not made["1x4"].problem
    assert made["1x4"].memory_bytes <= 64 * GIB
    wide = forecast(question(), 1, 65, members(65))
    assert "65 shards for 64 query heads" in wide.problem
    deep = forecast(question(), 81, 1, members(81))
    assert "81 stages for 80 layers" in deep.problem


@pytest.mark.parametrize(("weights", "bits"), [("bfloat16", 16), ("q8", 8.5), ("q4", 5)])
def test_weights_take_their_bits(weights: str, bits: float) -> None:
    # Given a way to keep weights / When they are on one worker
    made = forecast(question(weights), 1, 1, members(1))
    # Then worker and Redis have them once
    assert made.weight_bytes == pytest.approx(LARGE_WEIGHTS * bits / 8, rel=0.01)
    assert made.memory_bytes == made.weight_bytes + made.kv_bytes + WORKER_BYTES
    assert question(weights).redis_bytes == pytest.approx(LARGE_WEIGHTS * bits / 8, rel=0.03)


def test_loading_is_bound_by_the_link_of_redis() -> None:
    slow, fast = (
        forecast(question(wire_bytes_per_s=rate), 2, 4, members(8)).load_s for rate in (1e8, 1e12)
    )
    assert slow == pytest.approx(2 * LARGE_WEIGHTS / 1e8, rel=0.05)
    assert fast < slow / 10


def test_nothing_fits_nothing_is_recommended() -> None:
    made = forecasts(question(), (1, 2), members(2, gib=1))
    assert recommended(made) is None
    assert slower_from(made) is None
