"""What a shard loads, counts and refuses; tests/parity compares what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_families import (
    ENCODER_DECODERS,
    ENCODER_HEADS,
    ENCODERS,
    FAMILIES,
    NEVER_TIED,
    encoder_config,
    encoder_decoder_config,
    tiny_config,
)
from plans import plan_for

from skynet.architecture.architecture import Architecture
from skynet.architecture.config import ABSENT, MODULES
from skynet.architecture.tensors import staged_tensors
from skynet.errors import CheckpointError, StepFailed
from skynet.layers.shard_model import ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.memory import shard_weight_bytes, slot_bytes
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.wire.step import LogitsRequest, Row, Step, TextTask


def architecture(family: str, **fields: Any) -> Architecture:
    return load_architecture(tiny_config(family, **fields).to_dict())


class Weights:
    """Random tensors by region; records the requested regions."""

    def __init__(self, arch: Architecture) -> None:
        self._staged = {tensor.name: tensor for tensor in staged_tensors(arch)}
        self.asked: list[tuple[str, Range]] = []

    def __call__(self, name: str, region: Range) -> torch.Tensor:
        self.asked.append((name, region))
        tensor = self._staged[name]
        shape = list(tensor.shape)
        assert 0 < region.size <= shape[tensor.axis] - region.start
        shape[tensor.axis] = region.size
        return torch.rand(shape)


def plan_of(arch: Architecture, stages: int, shards: int, dtype: str = "float32") -> Plan:
    return plan_for(arch, stages, shards, dtype=dtype)


def never(partial: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing is summed")


@pytest.mark.parametrize(("tied", "dtype"), [(True, "float32"), (False, "bfloat16")])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_what_the_plan_says(family: str, tied: bool, dtype: str) -> None:
    # Given every shard of a plan
    arch = architecture(family, tie_word_embeddings=tied and family not in NEVER_TIED)
    plan = plan_of(arch, 2, 4, dtype)
    for stage, shard in plan.addresses():
        # When it is loaded
        model = ShardModel(arch, plan, (stage, shard), Weights(arch))
        # Then it weighs what the planner expected, and no more than that was fetched
        assert model.weight_bytes == shard_weight_bytes(arch, plan, stage, shard)
        assert 0 < model.fetched_bytes <= model.weight_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", ENCODER_HEADS)
@pytest.mark.parametrize("family", ENCODERS)
def test_bytes_of_encoders_are_what_the_plan_says(family: str, head: str, dtype: str) -> None:
    # Given every shard of a plan
    arch = load_architecture(encoder_config(family, head))
    plan = plan_of(arch, 2, 4, dtype)
    for stage, shard in plan.addresses():
        # When it is loaded
        model = ShardModel(arch, plan, (stage, shard), Weights(arch))
        # Then it weighs what the planner expected, and keeps no slots
        assert model.weight_bytes == shard_weight_bytes(arch, plan, stage, shard)
        assert slot_bytes(arch, plan, stage, shard) == 0


def module(number: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A module Dense in a config."""
    name = f"{number}_Dense.linear"
    return {"name": name, "in": inputs, "out": outputs, "bias": number == 2, "activation": "Tanh"}


TEXT_HEADS = {
    "classifier": tiny_config("qwen3", num_labels=2).to_dict()
    | {"architectures": ["Qwen3ForSequenceClassification"]},
    "dense": encoder_config("bert", "Model")
    | {MODULES: {"dense": [module(2, 48, 70), module(3, 70, 9)], "head": True}},
    "no head": tiny_config("qwen3").to_dict() | {MODULES: {"dense": [], "head": False}},
    "bidirectional": tiny_config("gemma3_text", use_bidirectional_attention=True).to_dict(),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", TEXT_HEADS.values(), ids=TEXT_HEADS)
def test_bytes_of_heads_for_texts_are_what_the_plan_says(
    config: dict[str, Any], dtype: str
) -> None:
    # Given every shard of a plan
    arch = load_architecture(config)
    assert not arch.has_head
    plan = plan_of(arch, 2, 4, dtype)
    for stage, shard in plan.addresses():
        # When it is loaded / Then it weighs what the planner expected
        model = ShardModel(arch, plan, (stage, shard), Weights(arch))
        assert model.weight_bytes == shard_weight_bytes(arch, plan, stage, shard)


def encoder_decoder(family: str, *absent: str, **fields: Any) -> Architecture:
    """absent: tensors that the file lacks."""
    config = encoder_decoder_config(family, **fields).to_dict()
    return load_architecture(config | {ABSENT: list(absent)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_bytes_of_encoder_decoders_are_what_the_plan_says(
    family: str, tied: bool, stages: int, dtype: str
) -> None:
    # Given every shard of a plan, of a model with one table for all and of one with three
    arch = encoder_decoder(family)
    if tied:
        ends = ("embed", "positions", "head")
        tables = [w.tensor() for s in arch.stacks for w in s.weights if w.role in ends]
        arch = encoder_decoder(family, *tables)
    assert arch.tied == tied
    plan = plan_of(arch, stages, 4, dtype)
    caches = 0
    for stage, shard in plan.addresses():
        # When it is loaded
        model = ShardModel(arch, plan, (stage, shard), Weights(arch))
        # Then it weighs what the planner expected
        assert model.weight_bytes == shard_weight_bytes(arch, plan, stage, shard)
        caches += slot_bytes(arch, plan, stage, shard)
    # And all decoder layers together hold self-attention KV and encoder KV
    token_bytes = 2 * arch.num_heads * arch.head_dim * (4 if dtype == "float32" else 2)
    assert caches == 2 * arch.num_layers * plan.num_slots * plan.slot_tokens * token_bytes


def test_an_encoder_step_has_all_reduces_in_the_encoder_only() -> None:
    # Given an encoder of three layers and a decoder of two, span by span
    arch = encoder_decoder("bart")
    model = ShardModel(arch, plan_of(arch, 1, 1), (0, 0), Weights(arch))
    made: list[int] = []

    def count(partial: torch.Tensor) -> torch.Tensor:
        made[-1] += 1
        return partial.float()

    def run(step: Step) -> None:
        hidden = None
        for layer in range(step.start, arch.total_layers):
            made.append(0)
            hidden, _, _ = model.run(step, Range(layer, layer + 1), hidden, count)

    # When a text is encoded, and then a token is computed
    run(Step(1, 1, (Row(3, 0, (1, 2, 9), 3),), 1))
    run(Step(1, 2, (Row(0, 0, (7,), 1, LogitsRequest(), encoder_kv=(3, 3)),), 1, start=3))
    # Then numbers of sums leave room for all of them: norms of sums take one more at a span's end
    assert made == [3, 2, 2, 0, 0, 4, 3]
    assert [arch.first_sum(layer) for layer in range(5)] == [0, 3, 5, 7, 11]


def test_a_row_with_an_unknown_encoder_kv_is_refused() -> None:
    # Given a model without an encoder, and one with
    llama, bart = architecture("llama"), encoder_decoder("bart")
    model = ShardModel(bart, plan_of(bart, 1, 1), (0, 0), Weights(bart))
    whole = Range(3, 5)
    # When a row names an encoder KV or a length that the plan lacks / Then it is refused
    for encoder_kv in ((16, 3), (-1, 3), (0, 0), (0, 65)):
        step = Step(1, 1, (Row(0, 0, (7,), 1, LogitsRequest(), encoder_kv=encoder_kv),), 1, start=3)
        with pytest.raises(StepFailed, match="slot 0: there is no encoder KV"):
            model.run(step, whole, None, never)
    # And a decoder-only model has no cross-attention
    other = ShardModel(llama, plan_of(llama, 1, 1), (0, 0), Weights(llama))
    with pytest.raises(StepFailed, match="has no cross-attention"):
        other._stack.of(Range(0, 1))[0].store_encoder_kv(torch.zeros(1, 48), None)  # type: ignore


def test_only_the_slice_of_the_shard_is_fetched() -> None:
    # Given the second of two shards, in the last of two stages, of a fused and transposed family
    arch = architecture("gpt2")
    weights = Weights(arch)
    plan = plan_of(arch, 2, 2)
    # When it is loaded
    ShardModel(arch, plan, (1, 1), weights)
    # Then it asked for its heads in each of the three fused parts, and for none of stage 0's layers
    fused = [region for name, region in weights.asked if name.endswith("3.attn.c_attn.weight")]
    assert fused == [Range(24, 48), Range(72, 96), Range(120, 144)]
    layers = plan.stages[1].layers
    asked = {int(name.split(".")[2]) for name, _ in weights.asked if ".h." in name}
    assert asked == set(range(layers.start, layers.stop))


@pytest.mark.parametrize(
    ("family", "shards", "shard", "regions"),
    [
        # 6 heads of 8 with their keys and values: those of the last three are one run.
        ("gpt_neox", 2, 1, [Range(72, 144)]),
        # 3 groups of 2 query heads, a key and a value: one group is one run.
        ("falcon", 3, 1, [Range(32, 64)]),
        # Half a group: the first query head, and, beyond the second, key and value.
        ("falcon", 6, 2, [Range(32, 40), Range(48, 64)]),
    ],
)
def test_heads_fused_by_group_are_fetched_in_runs(
    family: str, shards: int, shard: int, regions: list[Range]
) -> None:
    # Given a family whose Q, K and V of a KV head stand together
    arch = architecture(family)
    weights = Weights(arch)
    # When a shard is loaded
    ShardModel(arch, plan_of(arch, 1, shards), (0, shard), weights)
    # Then it asked for its heads only, and for each run once
    name = next(weight.tensor(0) for weight in arch.weights if weight.role == "q")
    assert [region for asked, region in weights.asked if asked == name] == regions


@pytest.mark.parametrize("family", FAMILIES)
def test_all_reduces_have_the_same_numbers_for_any_span(family: str) -> None:
    # Given a model of 4 layers that runs span by span
    arch = architecture(family)
    model = ShardModel(arch, plan_of(arch, 1, 1), (0, 0), Weights(arch))
    hidden, made = None, 0

    def count(partial: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        return partial.float()

    for layer in range(arch.num_layers):
        # When each starts to count where the architecture says
        number, made = model.first_sum(layer), 0
        step = Step(1, 1, (Row(0, 0, (1, 2), 2, LogitsRequest()),), 1)
        hidden, _, _ = model.run(step, Range(layer, layer + 1), hidden, count)
        # Then it makes no sum that the next one makes, and leaves out the last one at most
        left_out = model.first_sum(layer + 1) - (number + made)
        assert left_out in ((0,) if layer == arch.num_layers - 1 else (0, 1))


def test_a_tensor_of_another_shape_is_refused_by_name() -> None:
    # Given a fetch that gives too much
    arch = architecture("llama")
    # When / Then the error names the weight and both shapes
    with pytest.raises(CheckpointError, match=r"embed_tokens.*\(131, 48\), expected \(66, 48\)"):
        ShardModel(arch, plan_of(arch, 1, 2), (0, 1), lambda name, region: torch.rand(131, 48))


@pytest.fixture(scope="module")
def middle() -> ShardModel:
    """The second of two stages of a small model: layers 2 and 3."""
    arch = architecture("llama", max_position_embeddings=32)
    model = ShardModel(arch, plan_of(arch, 2, 1), (1, 0), Weights(arch))
    assert model.layers == Range(2, 4)
    return model


@pytest.mark.parametrize(
    ("row", "span", "tokens", "message"),
    [
        (Row(16, 0, (1,), 1), Range(2, 3), 1, "slot 16 is none of the plan's 16"),
        (Row(3, 31, (1, 2), 33), Range(2, 3), 2, r"slot 3: tokens \[31, 33\).*its 32"),
        (Row(3, 0, (), 1), Range(2, 3), 0, "slot 3: .* are none"),
        (Row(3, 0, (131,), 1), Range(2, 3), 1, "slot 3: .*outside the vocabulary 131"),
        (
            Row(3, 0, (1, 2), 2, text_task=TextTask("rerank", types=(0, 1))),
            Range(2, 3),
            2,
            "slot 3: token types up to 1 of 2 tokens, the model has 0 types",
        ),
        (Row(3, 0, (1,), 1), Range(1, 3), 1, "not in this stage's layers"),
        (Row(3, 0, (1,), 1), Range(2, 2), 1, "not in this stage's layers"),
        (Row(3, 0, (1,), 1), Range(2, 3), 2, r"are \(2, 48\), expected \(1, 48\)"),
        (Row(3, 0, (1,), 1), Range(2, 3), None, r"are None, expected \(1, 48\)"),
    ],
)
def test_an_invalid_row_or_span_fails_the_step(
    middle: ShardModel, row: Row, span: Range, tokens: int | None, message: str
) -> None:
    # Given a row or a span that this stage cannot run
    hidden = None if tokens is None else torch.zeros(tokens, 48)
    # When / Then the step fails with an error that names the fault
    with pytest.raises(StepFailed, match=message):
        middle.run(Step(1, 1, (row,), 1), span, hidden, never)


def test_rows_without_a_logits_request_get_no_candidates(middle: ShardModel) -> None:
    # Given a chunk of a prompt, a row that requests two candidates, and one that requests all
    rows = (
        Row(0, 0, (1, 2, 3), 9),
        Row(1, 0, (4, 5), 2, LogitsRequest(top=2)),
        Row(2, 0, (6,), 1, LogitsRequest(top=0)),
    )
    # When the last span runs
    hidden, candidates, _ = middle.run(
        Step(1, 2, rows, 2), Range(2, 4), torch.rand(6, 48), lambda partial: partial.float()
    )
    # Then there are no hidden states, and candidates for the rows that request some
    assert hidden is None
    assert [len(row_candidates.ids) for row_candidates in candidates] == [2, 131]


def test_hidden_states_given_are_not_written_to(middle: ShardModel) -> None:
    # Given hidden states, as a chord's body hands them to a task
    given = torch.rand(1, 48)
    before = given.clone()
    # When a span runs, and again as part of another step
    step = Step(1, 3, (Row(0, 0, (1,), 1),), 1)
    first, _, _ = middle.run(step, Range(2, 3), given, lambda partial: partial.float())
    again, _, _ = middle.run(step, Range(2, 3), given, lambda partial: partial.float())
    # Then they are as before, and the same step gives the same part
    assert torch.equal(given, before)
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
