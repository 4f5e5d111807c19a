"""How experts are divided: whole or by columns, by what a token takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_families import tiny_config
from plans import plan_for

from skynet.architecture.architecture import Architecture
from skynet.errors import PlanError
from skynet.models.registry import load_architecture
from skynet.planning.expert_cut import busiest
from skynet.planning.memory import shard_weight_bytes
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range, check_tiling


def mixture(**fields: Any) -> Architecture:
    return load_architecture(tiny_config("qwen3_moe", **fields).to_dict())


@given(data=st.data())
def test_the_busiest_shard_is_that_of_all_choices(data: st.DataObject) -> None:
    # Given any few experts, shards and choices
    experts = data.draw(st.integers(1, 8))
    shards = data.draw(st.integers(1, experts))
    chosen = data.draw(st.integers(1, experts))
    # When every set of experts is counted
    borders = [experts * shard // shards for shard in range(shards + 1)]
    ranges = [Range(*pair) for pair in pairwise(borders)]
    sets = list(combinations(range(experts), chosen))
    most = [max(sum(one in each for one in chosen_set) for each in ranges) for chosen_set in sets]
    # Then their mean is the expected number
    assert busiest(experts, shards, chosen) == pytest.approx(sum(most) / len(sets))


@pytest.mark.parametrize("shards", [2, 3, 6])
def test_whole_experts_are_each_in_one_shard(shards: int) -> None:
    # Given a plan with whole experts
    arch = mixture()
    plan = plan_for(arch, 2, shards, experts="whole")
    # Then they are divided, and the plan survives JSON
    for stage in plan.stages:
        experts = [part.experts for part in stage.shards if part.experts]
        check_tiling(experts, arch.num_experts, "experts")
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.summary()["stages"][0]["shards"][0]["experts"][0] == 0
    # And together they weigh what the columns of all of them do, but for KV heads that are shared
    columns = plan_for(arch, 2, shards, experts="columns")
    whole_bytes, columns_bytes = (
        sum(shard_weight_bytes(arch, each, *address) for address in each.addresses())
        for each in (plan, columns)
    )
    assert whole_bytes == columns_bytes


def test_auto_chooses_by_the_width_of_experts() -> None:
    # Given experts as wide as those of Qwen3-30B-A3B, and narrow ones
    sizes = {"hidden_size": 2048, "num_experts": 128, "num_experts_per_tok": 8, "head_dim": 128}
    wide = mixture(**sizes, moe_intermediate_size=768)
    narrow = mixture(**sizes, moe_intermediate_size=32)
    # When / Then reading wide ones is divided evenly, and narrow ones are products to be saved
    assert plan_for(wide, 1, 2).stages[0].shards[0].experts is None
    assert plan_for(narrow, 1, 4).stages[0].shards[0].experts == Range(0, 32)
    assert plan_for(narrow, 1, 1).stages[0].shards[0].experts is None


def test_a_model_without_experts_has_none_whole() -> None:
    arch = load_architecture(tiny_config("llama").to_dict())
    assert plan_for(arch, 1, 2).stages[0].shards[0].experts is None
    with pytest.raises(PlanError, match="llama has 0 experts for 2 shards"):
        plan_for(arch, 1, 2, experts="whole")
    with pytest.raises(PlanError, match="experts 'half' is not supported"):
        plan_for(arch, 1, 2, experts="half")


def test_a_plan_with_experts_in_two_places_is_refused() -> None:
    # Given a plan whose shards have the same experts
    plan = plan_for(mixture(), 1, 2, experts="whole")
    (stage,) = plan.stages
    parts = tuple(replace(part, experts=Range(0, 4)) for part in stage.shards)
    # When / Then
    with pytest.raises(Exception, match="experts: a part starts at 0"):
        Plan.from_json(replace(plan, stages=(replace(stage, shards=parts),)).to_json())
