"""What a shard on the Transformers backend loads, reuses, counts and copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plans import plan_for
from transformers_families import transformers_config

from skynet.architecture.tensors import staged_tensors
from skynet.architecture.transformers_model import KEY, TransformersArchitecture, read
from skynet.errors import StepFailed
from skynet.layers.shard_model import PreviousSlice, ShardModel
from skynet.planning.memory import shard_weight_bytes
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.transformers_backend.description import describe_model
from skynet.transformers_backend.shard import TransformersShard
from skynet.wire.step import LogitsRequest, Row, Step
from skynet.worker.shard_class import shard_class

MODEL_TYPES = [
    "apertus",
    "arcee",
    "dots1",
    "glm",
    "hunyuan_v1_dense",
    "jais2",
    "olmo3",
    "qwen2_moe",
]


def architecture(model_type: str, **fields: Any) -> TransformersArchitecture:
    config = transformers_config(model_type, **fields).to_dict()
    return read(config | {KEY: describe_model(config)})


class Weights:
    """Tensors by region, the same each time; records the requested regions."""

    def __init__(self, arch: TransformersArchitecture) -> None:
        generator = torch.Generator().manual_seed(3)
        self.axes = {tensor.name: tensor.axis for tensor in staged_tensors(arch)}
        self.tensors = {
            tensor.name: torch.randn(tensor.shape, generator=generator) / 5
            for tensor in staged_tensors(arch)
        }
        self.asked: list[tuple[str, Range]] = []

    def __call__(self, name: str, region: Range) -> torch.Tensor:
        self.asked.append((name, region))
        assert region.size > 0
        return self.tensors[name].narrow(self.axes[name], region.start, region.size).clone()


def plan_of(
    arch: TransformersArchitecture, stages: int, shards: int, dtype: str = "float32"
) -> Plan:
    return plan_for(arch, stages, shards, dtype=dtype)


def alone(partial: torch.Tensor) -> torch.Tensor:
    return partial.float()


def outputs(arch: TransformersArchitecture, model: ShardModel) -> list[torch.Tensor]:
    """What a shard makes of one step through all its layers, alone."""
    rows = (
        Row(0, 0, (1, 5, 70), 3, LogitsRequest(top=0)),
        Row(1, 0, (9,), 1, LogitsRequest(top=0)),
    )
    hidden = None
    if model.layers.start > 0:
        hidden = torch.rand(4, arch.hidden_size, generator=torch.Generator().manual_seed(5))
    step = Step(1, 1, rows, arch.num_layers)
    partial, candidates, _ = model.run(step, model.layers, hidden, alone)
    results = [] if partial is None else [partial]
    return results + [torch.from_numpy(item.logits) for item in candidates]


@pytest.mark.parametrize(("dtype", "tied"), [("float32", True), ("bfloat16", False)])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_bytes_are_what_the_plan_says(model_type: str, tied: bool, dtype: str) -> None:
    # Given every shard of a plan
    arch = architecture(model_type, tie_word_embeddings=tied)
    plan = plan_of(arch, 1, 3, dtype)
    for stage, shard in plan.addresses():
        # When it is loaded
        model = shard_class(arch)(arch, plan, (stage, shard), Weights(arch))
        # Then it weighs what the planner expected, and no more than that was fetched
        assert isinstance(model, TransformersShard)
        assert model.weight_bytes == shard_weight_bytes(arch, plan, stage, shard)
        assert 0 < model.fetched_bytes <= model.weight_bytes


def test_only_the_slice_is_fetched() -> None:
    # Given the second of three shards, in the last of two stages
    arch = architecture("arcee", attention_bias=True)
    weights, plan = Weights(arch), plan_of(arch, 2, 3)
    part = plan.stages[1].shards[1]
    # When it is loaded
    shard_class(arch)(arch, plan, (1, 1), weights)
    # Then it asked for its head, its half of a KV head's group, its columns and its vocabulary
    asked = dict(weights.asked)
    layer = "model.layers.2."
    assert asked[layer + "self_attn.q_proj.weight"] == Range(16, 24)
    assert asked[layer + "self_attn.k_proj.bias"] == Range(0, 8)
    assert asked[layer + "self_attn.o_proj.weight"] == Range(16, 24)
    assert asked[layer + "self_attn.o_proj.bias"] == Range(0, 48)
    assert asked[layer + "mlp.down_proj.weight"] == part.columns
    assert asked["lm_head.weight"] == part.vocab
    # And for nothing of the first stage
    layers = {int(name.split(".")[2]) for name, _ in weights.asked if ".layers." in name}
    assert layers == set(range(plan.stages[1].layers.start, 3))
    assert "model.embed_tokens.weight" not in asked


@pytest.mark.parametrize("model_type", ["glm", "olmo3"])
def test_gathered_parts_are_disjoint(model_type: str) -> None:
    # Given more shards than KV heads
    arch = architecture(model_type)
    name = {"glm": "mlp.gate_up_proj", "olmo3": "self_attn.k_proj"}[model_type]
    # When all are loaded
    regions = []
    for shard in range(4):
        weights = Weights(arch)
        shard_class(arch)(arch, plan_of(arch, 1, 4), (0, shard), weights)
        asked = [
            region for asked, region in weights.asked if asked == f"model.layers.0.{name}.weight"
        ]
        regions += asked
    # Then their parts are the whole, and no part is another's
    total = arch.shape(next(weight for weight in arch.weights if weight.role == name))[0]
    assert sorted(row for region in regions for row in range(region.start, region.stop)) == list(
        range(total)
    )


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("model_type", ["apertus", "dots1", "glm", "hunyuan_v1_dense"])
def test_loaded_parts_of_a_slice_are_not_fetched_again(model_type: str, consume: bool) -> None:
    # Given a shard, and its place in a plan of another shape
    arch = architecture(model_type, tie_word_embeddings=True)
    weights = Weights(arch)
    old = shard_class(arch)(arch, plan_of(arch, 2, 2), (0, 1), weights)
    had = weights.asked[:]
    scratch = shard_class(arch)(arch, plan_of(arch, 1, 3), (0, 1), weights)
    weights.asked.clear()
    # When it is made with what the first has
    made = shard_class(arch)(
        arch, plan_of(arch, 1, 3), (0, 1), weights, previous=PreviousSlice(old, consume)
    )
    # Then it computes the same, with less fetched
    assert all(map(torch.equal, outputs(arch, made), outputs(arch, scratch)))
    assert made.weight_bytes == scratch.weight_bytes
    assert 0 < made.fetched_bytes < scratch.fetched_bytes
    again = [
        name
        for name, region in weights.asked
        for other, fetched in had
        if name == other and region.overlap(fetched).size and weights.tensors[name].ndim > 1
    ]
    assert set(again) <= {"model.embed_tokens.weight"}  # tied: laid out in two ways


@pytest.mark.parametrize("model_type", ["arcee", "qwen2_moe"])
def test_an_unchanged_slice_fetches_nothing(model_type: str) -> None:
    # Given
    arch = architecture(model_type)
    weights, plan = Weights(arch), plan_of(arch, 1, 2)
    old = shard_class(arch)(arch, plan, (0, 1), weights)
    weights.asked.clear()
    # When
    made = shard_class(arch)(
        arch, plan.with_epoch(9), (0, 1), weights, previous=PreviousSlice(old, consume=True)
    )
    # Then
    assert (weights.asked, made.fetched_bytes) == ([], 0)
    # And the consumed slice has no weights left
    assert (old._weights.entries, old._stack, vars(old).get("_body")) == ({}, None, None)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_all_reduces_have_the_same_numbers_for_any_span(model_type: str) -> None:
    # Given a model that runs span by span
    arch = architecture(model_type)
    model = shard_class(arch)(arch, plan_of(arch, 1, 1), (0, 0), Weights(arch))
    hidden, made = None, 0

    def count(partial: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        assert partial.ndim == 2
        assert partial.is_contiguous()
        return partial.float()

    for layer in range(arch.num_layers):
        # When each starts to count where the architecture says
        number, made = model.first_sum(layer), 0
        step = Step(1, 1, (Row(0, 0, (1, 2), 2, LogitsRequest()),), 1)
        hidden, _, _ = model.run(step, Range(layer, layer + 1), hidden, count)
        # Then it makes as many as the next one expects
        assert number + made == model.first_sum(layer + 1)


def test_a_copied_slot_goes_on_as_the_first_does() -> None:
    # Given a prompt in slot 0
    arch = architecture("olmo3")
    model = shard_class(arch)(arch, plan_of(arch, 1, 1), (0, 0), Weights(arch))
    span = Range(0, arch.num_layers)
    prompt = tuple(range(10))
    model.run(Step(1, 1, (Row(0, 0, prompt, 10),), 9), span, None, alone)
    # When slot 3 takes it over, in the step in which both go on
    rows = (
        Row(0, 10, (11,), 10, LogitsRequest(top=0)),
        Row(3, 10, (11,), 10, LogitsRequest(top=0), source=0),
    )
    _, candidates, _ = model.run(Step(1, 2, rows, 9), span, None, alone)
    # Then both say the same
    torch.testing.assert_close(*(torch.from_numpy(each.logits) for each in candidates))


def test_hidden_states_given_are_not_written_to() -> None:
    # Given the second stage
    arch = architecture("arcee")
    model = shard_class(arch)(arch, plan_of(arch, 2, 1), (1, 0), Weights(arch))
    hidden = torch.rand(2, arch.hidden_size)
    before = hidden.clone()
    # When
    model.run(Step(1, 1, (Row(0, 0, (1, 2), 2),), 1), model.layers, hidden, alone)
    # Then
    assert torch.equal(hidden, before)


def test_a_span_of_another_stage_is_refused() -> None:
    arch = architecture("arcee")
    model = shard_class(arch)(arch, plan_of(arch, 2, 1), (1, 0), Weights(arch))
    step = Step(1, 1, (Row(0, 0, (1, 2), 2),), 1)
    with pytest.raises(StepFailed, match="is not in this stage's layers"):
        model.run(step, Range(0, 1), None, alone)
    with pytest.raises(StepFailed, match="hidden states are"):
        model.run(step, model.layers, None, alone)


def test_a_failed_step_leaves_nothing_behind() -> None:
    # Given a sum that fails in the middle of a step
    arch = architecture("arcee")
    model = shard_class(arch)(arch, plan_of(arch, 1, 1), (0, 0), Weights(arch))
    expected = outputs(arch, model)

    def lost(partial: torch.Tensor) -> torch.Tensor:
        raise StepFailed("a peer is gone")

    with pytest.raises(StepFailed, match="a peer is gone"):
        model.run(Step(1, 2, (Row(0, 0, (1,), 1),), 1), Range(0, 1), None, lost)
    # When / Then the next one is as if nothing had been
    assert all(map(torch.equal, outputs(arch, model), expected))


def test_the_log_says_that_it_is_slower(caplog: pytest.LogCaptureFixture) -> None:
    # When
    arch = architecture("arcee")
    shard_class(arch)(arch, plan_of(arch, 1, 1), (0, 0), Weights(arch))
    # Then
    assert "'arcee' has no file" in caplog.text
    assert "slower" in caplog.text


def test_stages_are_even_though_some_layers_have_experts() -> None:
    # Given a model whose first three layers have none, and many in the others
    many = dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts"), 96)
    arch = architecture("glm4_moe", num_hidden_layers=11, first_k_dense_replace=3, **many)
    # When it is cut in four
    plan = plan_of(arch, 4, 1)
    # Then the first stage has these besides its share
    assert [stage.layers.size for stage in plan.stages] == [5, 2, 2, 2]
    loads = [shard_weight_bytes(arch, plan, stage, 0) for stage in range(4)]
    assert max(loads) < 1.2 * min(loads)
