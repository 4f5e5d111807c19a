"""Any plan that is made tiles the model exactly; any that cannot be made says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import plan_for

from skynet.architecture.architecture import Architecture
from skynet.architecture.quantisable import quantised
from skynet.errors import PlanError
from skynet.layers.dtypes import Dtypes
from skynet.models.registry import load_architecture
from skynet.planning.memory import shard_weight_bytes, slot_bytes
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range, check_tiling
from skynet.planning.split import layer_params, shard_plans


def architecture(**fields: Any) -> Architecture:
    return load_architecture(
        {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }
        | fields
    )


def plan_of(arch: Architecture, stages: int = 1, shards: int = 1, **options: Any) -> Plan:
    return plan_for(arch, stages, shards, **options)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    kv_heads, group = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return architecture(
        hidden_size=draw(st.integers(1, 40)) * kv_heads * group,
        head_dim=draw(st.sampled_from([4, 10, 64])),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        intermediate_size=draw(st.integers(1, 4000)),
        vocab_size=draw(st.integers(30, 9000)),
        num_hidden_layers=draw(st.integers(1, 12)),
        tie_word_embeddings=draw(st.booleans()),
    )


@given(arch=architectures(), data=st.data())
def test_a_plan_tiles_everything(arch: Architecture, data: st.DataObject) -> None:
    # Given any model and any shape that it allows
    stages = data.draw(st.integers(1, arch.num_layers))
    shards = data.draw(st.integers(1, arch.num_heads))
    # When it is cut
    plan = plan_of(arch, stages, shards)
    # Then layers, heads, columns and vocabulary are each in exactly one place
    check_tiling([stage.layers for stage in plan.stages], arch.num_layers, "layers")
    assert all(stage.layers.size >= 1 for stage in plan.stages)
    for stage in plan.stages:
        check_tiling([part.heads for part in stage.shards], arch.num_heads, "heads")
        check_tiling([part.columns for part in stage.shards], arch.intermediate_size, "columns")
        check_tiling([part.vocab for part in stage.shards], arch.vocab_size, "vocabulary")
    # And each shard has the KV heads of its query heads, as many queries for each
    for part in plan.stages[0].shards:
        assert part.heads.size >= 1
        needed = {head // arch.group for head in range(part.heads.start, part.heads.stop)}
        assert needed == set(range(part.kv_heads.start, part.kv_heads.stop))
        assert part.heads.size % part.kv_heads.size == 0
    # And it survives the journey through JSON
    assert Plan.from_json(plan.to_json()) == plan


@given(arch=architectures(), data=st.data())
def test_a_plan_by_weights_tiles_and_gives_each_what_it_can_take(
    arch: Architecture, data: st.DataObject
) -> None:
    # Given any model and shape, and what each worker can take
    stages = data.draw(st.integers(1, min(3, arch.num_layers)))
    shards = data.draw(st.integers(1, min(6, arch.num_heads)))
    quarters = st.integers(1, 4).map(lambda number: number / 4)
    of_stage = st.lists(quarters, min_size=shards, max_size=shards)
    weights = data.draw(st.lists(of_stage, min_size=stages, max_size=stages))
    by_memory = data.draw(st.booleans())
    # When it is cut
    plan = plan_of(arch, stages, shards, weights=weights, by_memory=by_memory)
    # Then everything is in exactly one place, and every shard has heads
    check_tiling([stage.layers for stage in plan.stages], arch.num_layers, "layers")
    assert all(stage.layers.size >= 1 for stage in plan.stages)
    for stage, share in zip(plan.stages, weights, strict=True):
        check_tiling([part.heads for part in stage.shards], arch.num_heads, "heads")
        check_tiling([part.columns for part in stage.shards], arch.intermediate_size, "columns")
        check_tiling([part.vocab for part in stage.shards], arch.vocab_size, "vocabulary")
        for part, weight in zip(stage.shards, share, strict=True):
            assert part.heads.size >= 1
            assert part.kv_heads == Range(
                part.heads.start // arch.group, -(-part.heads.stop // arch.group)
            )
            # And it has columns up to its share, to a unit; by memory, beyond what its heads weigh
            attention = 2 * (part.heads.size + part.kv_heads.size) * arch.head_dim
            attention *= arch.hidden_size * by_memory
            column = 3 * arch.hidden_size
            unit = 32 if arch.intermediate_size >= shards * 256 else 1
            every = sum(
                2 * (p.heads.size + p.kv_heads.size) * arch.head_dim * arch.hidden_size
                for p in stage.shards
            )
            every *= by_memory
            ideal = (every + column * arch.intermediate_size) * weight / sum(share)
            assert attention + column * part.columns.size <= max(ideal, attention) + column * (
                unit + 1
            )
    # And the same weights for all are no weights
    even = [[0.5] * shards] * stages
    assert plan_of(arch, stages, shards, weights=even) == plan_of(arch, stages, shards)


@given(arch=architectures(), data=st.data())
def test_bytes_of_all_shards_are_the_model(arch: Architecture, data: st.DataObject) -> None:
    # Given a plan
    stages = data.draw(st.integers(1, arch.num_layers))
    shards = data.draw(st.integers(1, arch.num_kv_heads))  # more would replicate KV heads
    plan = plan_of(arch, stages, shards, dtype="bfloat16", num_slots=3, slot_tokens=7)
    # When the weights of all shards are added up
    total = sum(shard_weight_bytes(arch, plan, *address) for address in plan.addresses())
    # Then they are the model's products, the norms once in each shard
    norms = (2 * arch.num_layers + 1) * arch.hidden_size * 4 * shards
    ends = 2 * arch.vocab_size * arch.hidden_size
    assert total == 2 * (arch.num_layers * layer_params(arch, 0) + ends) + norms
    # And the slots hold a key and a value of each KV head for each token
    cache = sum(slot_bytes(arch, plan, *address) for address in plan.addresses())
    vectors = 2 * arch.num_layers * arch.num_kv_heads * 3 * 7
    assert cache == vectors * 2 * arch.head_dim
    # Or, in 8 bits, a code for each number and a scale
    small = replace(plan, kv_dtype="q8")
    assert sum(slot_bytes(arch, small, *address) for address in plan.addresses()) == vectors * (
        arch.head_dim + 4
    )


def test_int8_rounds_activations_alone() -> None:
    # Given a model with quantised weights
    arch = quantised(architecture(), "q4")
    exact = plan_of(arch)
    # When it is planned in int8
    plan = plan_of(arch, dtype="int8")
    # Then all that is kept is as in float32, and workers read the plan
    assert (plan.dtype, plan.weight_dtype, plan.summary()["kv_dtype"]) == ("int8", *["float32"] * 2)
    assert shard_weight_bytes(arch, plan, 0, 0) == shard_weight_bytes(arch, exact, 0, 0)
    assert slot_bytes(arch, plan, 0, 0) == slot_bytes(arch, exact, 0, 0)
    assert Plan.from_json(plan.to_json()) == plan
    assert Dtypes.of(plan) == (torch.float32, torch.float32, True)
    assert plan_of(arch, dtype="int8", kv_dtype="q8").summary()["kv_dtype"] == "q8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "tiny has no quantised weights.* give weights 'q8' or 'q4'"),
        ({"dtype": "int4"}, "dtype 'int4' is not supported"),
        ({"weight_dtype": "int8"}, "weight_dtype 'int8' is not supported"),
        ({"kv_dtype": "int8"}, "kv_dtype 'int8' is not supported"),
    ],
)
def test_dtypes_that_cannot_be_computed_in_are_refused(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        plan_of(architecture(), **options)


def test_nine_heads_in_three_groups_over_two_shards() -> None:
    # Given SmolLM2's shape
    arch = architecture()
    # When it is cut in two
    first, second = shard_plans(arch, 2)
    # Then KV groups stay whole, and MLP columns are even: each has a sum that waits for the slowest
    assert (first.heads, second.heads) == (Range(0, 6), Range(6, 9))
    assert (first.kv_heads, second.kv_heads) == (Range(0, 2), Range(2, 3))
    assert (first.columns, second.columns) == (Range(0, 768), Range(768, 1536))


@pytest.mark.parametrize("how", ["by memory", "one sum"])
def test_columns_make_up_for_uneven_heads(how: str) -> None:
    # Given shards that are cut by memory, or a model with one sum for attention and MLP
    arch = replace(architecture(), parallel=how == "one sum")
    # When it is cut in two
    first, second = shard_plans(arch, 2, by_memory=how == "by memory")
    # Then each shard has half of a layer's weights
    assert first.heads.size == 2 * second.heads.size
    assert first.columns.size % 32 == 0
    weights = [
        2 * (part.heads.size + part.kv_heads.size) * 64 + 3 * part.columns.size
        for part in (first, second)
    ]
    assert abs(weights[0] - weights[1]) <= 3 * 32


def test_a_worker_of_half_the_speed_gets_half_the_work() -> None:
    # Given 9 ungrouped heads, and a shard that can take half of what the other can
    arch = architecture(num_attention_heads=9, num_key_value_heads=9)
    # When the model is cut
    plan = plan_of(arch, 1, 2, weights=[[1.0, 0.5]])
    # Then heads, columns and vocabulary are about two to one
    fast, slow = plan.stages[0].shards
    assert (fast.heads.size, slow.heads.size) == (6, 3)
    assert abs(fast.columns.size - 2 * slow.columns.size) <= 3 * 32
    assert abs(fast.vocab.size - 2 * slow.vocab.size) <= 3 * 16


def test_more_shards_than_kv_heads_share_one() -> None:
    # When 9 query heads in 3 KV groups are cut for 5 shards
    parts = shard_plans(architecture(), 5)
    # Then two KV heads are in two shards each, and no shard has parts of two groups
    assert [part.heads.size for part in parts] == [2, 1, 2, 1, 3]
    assert [part.kv_heads.start for part in parts] == [0, 0, 1, 1, 2]


def test_parts_of_a_group_are_cut_at_borders_of_smaller_groups() -> None:
    # Given 32 query heads that share 4 KV heads in some layers and 16 in others
    sizes = {"num_attention_heads": 32, "num_key_value_heads": 16, "num_hidden_layers": 2}
    groups = {"num_global_key_value_heads": 4, "attention_k_eq_v": True}
    own = {"hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "full_attention"]}
    arch = load_architecture({"model_type": "gemma4_text"} | sizes | groups | own)
    # When there are more shards than the fewest KV heads
    six, twenty = (
        [part.heads.stop for part in plan_for(arch, 1, shards).stages[0].shards]
        for shards in (6, 20)
    )
    # Then they have whole groups of the others, as far as these go round
    assert six == [4, 8, 16, 20, 24, 32]
    assert twenty[:5] == [1, 2, 4, 6, 8]
    assert len(set(twenty)) == 20


def test_a_shard_with_heavy_heads_gets_no_columns() -> None:
    # Given a model that is nearly all attention
    arch = architecture(intermediate_size=40)
    # When its heads cannot be cut evenly, and weigh on memory
    first, second = shard_plans(arch, 2, by_memory=True)
    # Then all columns go where there are fewer heads
    assert (first.columns.size, second.columns.size) == (0, 40)


def test_stages_weigh_the_same_with_both_ends_counted() -> None:
    # Given a model whose embedding and head weigh as much as 8 layers each
    arch = architecture()
    # When it is cut in three
    plan = plan_of(arch, stages=3)
    # Then the stage in the middle has more layers, and no stage weighs more than a layer above
    sizes = [stage.layers.size for stage in plan.stages]
    assert sizes[1] > sizes[0]
    assert sizes[1] > sizes[2]
    weights = [shard_weight_bytes(arch, plan, stage, 0) for stage in range(3)]
    assert max(weights) - min(weights) <= 4 * 1.1 * layer_params(arch, 0)


def test_default_slots_are_as_long_as_the_model_allows() -> None:
    # When / Then 4096 tokens at most, fewer if the model has fewer positions
    assert plan_of(architecture()).slot_tokens == 4096
    assert plan_of(architecture(max_position_embeddings=512)).slot_tokens == 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 10}, "10 shards for 9 query heads"),
        ({"shards": 0}, "0 shards for 9 query heads"),
        ({"stages": 31}, "31 stages for 30 layers"),
        ({"stages": 0}, "0 stages for 30 layers"),
        ({"slot_tokens": 8193}, "slot_tokens=8193: llama has 8192 positions"),
        ({"slot_tokens": 0}, "slot_tokens=0"),
        ({"num_slots": 0}, "num_slots=0"),
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"chord_span": "model"}, "chord_span 'model'"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused_with_the_numbers(
    options: dict[str, Any], message: str
) -> None:
    # When / Then the error names the value and the limit
    with pytest.raises(PlanError, match=message):
        plan_of(architecture(), **options)
