"""A slice made from an earlier one is the one that would have been loaded, and fetches less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import plan_for

from skynet.architecture.architecture import Architecture
from skynet.architecture.config import ABSENT
from skynet.architecture.tensors import staged_tensors
from skynet.layers.linear import KernelLinear, Linear
from skynet.layers.reuse import LoadedWeights, without
from skynet.layers.shard_model import PreviousSlice, ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.wire.step import LogitsRequest, Row, Step

LAYERS, HEADS, HIDDEN, VOCAB = 3, 4, 32, 71
Place = tuple[int, int]

llama_fields: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 41,
    "max_position_embeddings": 32,
    "head_dim": 8,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama, grouped queries, tied": {
        "model_type": "llama",
        **llama_fields,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama, one KV head for all, biases, untied": {
        "model_type": "llama",
        **llama_fields,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "qwen3, norms on queries and keys": {
        "model_type": "qwen3",
        **llama_fields,
        "num_key_value_heads": 4,
    },
    "gpt2, fused and transposed, biases, positions": {
        "model_type": "gpt2",
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": 32,
    },
    "gpt_neox, fused head by head, one sum a layer": {
        "model_type": "gpt_neox",
        **llama_fields,
        "rotary_pct": 0.5,
    },
    "falcon, fused group by group, half a group a shard": {
        "model_type": "falcon",
        **llama_fields,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "bias": True,
    },
    "olmo2, a norm of all heads": {
        "model_type": "olmo2",
        **llama_fields,
        "num_key_value_heads": 2,
    },
    "stablelm, a norm for each head": {
        "model_type": "stablelm",
        **llama_fields,
        "num_key_value_heads": 2,
        "qk_layernorm": True,
    },
    "mixtral, experts": {
        "model_type": "mixtral",
        **llama_fields,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
    },
    "opt, a projected embedding": {
        "model_type": "opt",
        **llama_fields,
        "ffn_dim": 41,
        "word_embed_proj_dim": 12,
    },
    "bart, an encoder of another width, a shared embedding": {
        "model_type": "bart",
        "d_model": HIDDEN,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 23,
        "decoder_ffn_dim": 41,
        "max_position_embeddings": 32,
        ABSENT: [
            "lm_head.weight",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
        ],
    },
    "t5, a table of distances, gated, a separate head": {
        "model_type": "t5",
        "d_model": HIDDEN,
        "d_kv": 6,
        "d_ff": 41,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "num_heads": HEADS,
        "relative_attention_num_buckets": 8,
        "feed_forward_proj": "gated-gelu",
        ABSENT: ["encoder.embed_tokens.weight"],
    },
}


class Weights:
    """The same tensors for every caller; records the requested regions."""

    def __init__(self, arch: Architecture) -> None:
        generator = torch.Generator().manual_seed(3)
        self.axes = {tensor.name: tensor.axis for tensor in staged_tensors(arch)}
        self.tensors = {
            tensor.name: torch.rand(tuple(tensor.shape), generator=generator) - 0.5
            for tensor in staged_tensors(arch)
        }
        self.asked: list[tuple[str, Range]] = []

    def __call__(self, name: str, region: Range) -> torch.Tensor:
        self.asked.append((name, region))
        return self.tensors[name].narrow(self.axes[name], region.start, region.size)


ARCHITECTURES = {
    name: load_architecture({"vocab_size": VOCAB, **fields}) for name, fields in MODELS.items()
}
WEIGHTS = {name: Weights(arch) for name, arch in ARCHITECTURES.items()}


@st.composite
def places(draw: st.DrawFn, arch: Architecture, dtype: str) -> tuple[Plan, Place]:
    """A plan of any shape and weights, and one of its addresses."""
    stages, shards = draw(st.integers(1, LAYERS)), draw(st.integers(1, HEADS))
    of_stage = st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=shards, max_size=shards)
    weights = draw(st.none() | st.lists(of_stage, min_size=stages, max_size=stages))
    plan = plan_for(arch, stages, shards, dtype=dtype, weights=weights)
    return plan, draw(st.sampled_from(list(plan.addresses())))


def bias_of(product: Linear) -> torch.Tensor | None:
    """A bias: of kernels it is packed with the weight."""
    return product._packed._bias if isinstance(product, KernelLinear) else product._bias


def contents(model: ShardModel) -> dict[Any, list[torch.Tensor]]:
    """Everything a shard has loaded, as plain tensors."""
    tensors_of = {}
    for key, (made, _) in model._weights.entries.items():
        tensors = [made.dense(), bias_of(made)] if isinstance(made, Linear) else [made]
        tensors_of[key] = [tensor for tensor in tensors if tensor is not None]
    return tensors_of


def same_contents(one: ShardModel, other: ShardModel) -> bool:
    one_contents, other_contents = contents(one), contents(other)
    return one_contents.keys() == other_contents.keys() and all(
        len(one_contents[key]) == len(other_contents[key])
        and all(
            torch.equal(a, b) for a, b in zip(one_contents[key], other_contents[key], strict=True)
        )
        for key in one_contents
    )


def fetched_again(
    arch: Architecture, first: list[tuple[str, Range]], then: list[tuple[str, Range]]
) -> list[str]:
    """Matrices of which a region was asked for both times.

    Not biases and norms, which are small, nor a tied embedding, which is laid out in two ways, nor
    what is fused group by group, of which whole groups are fetched.
    """
    by_group = tuple(w.tensor(0).rpartition(".0.")[2] for w in arch.weights if w.by_group)
    embed = arch.weight("embed")
    twice = embed.tensor() if arch.tied and embed is not None else ""
    return [
        name
        for name, region in then
        if name.endswith(".weight") and "norm" not in name and name != twice
        if not name.endswith(by_group)
        if any(name == other and region.overlap(had).size for other, had in first)
    ]


def outputs(arch: Architecture, model: ShardModel) -> list[torch.Tensor]:
    """What the shard makes of one step through all its layers, alone, after one of texts."""
    results: list[torch.Tensor] = []
    encoder_kv = (1, 1) if arch.encoder else None
    rows = (Row(0, 0, (1, 5, 70), 3), Row(1, 0, (9,), 1))
    if arch.encoder:
        results += outputs_of(model, Step(1, 1, rows, arch.total_layers))
    wanting = tuple(
        replace(row, logits_request=LogitsRequest(top=0), encoder_kv=encoder_kv) for row in rows
    )
    return results + outputs_of(model, Step(1, 2, wanting, arch.total_layers, arch.encoder_layers))


def outputs_of(model: ShardModel, step: Step) -> list[torch.Tensor]:
    span = model.layers.overlap(Range(step.start, 99))
    if span.size == 0:
        return []
    hidden = None
    if span.start > step.start:
        hidden = torch.rand(4, HIDDEN, generator=torch.Generator().manual_seed(5))
    partial, candidates, _ = model.run(step, span, hidden, lambda part: part.float())
    results = [] if partial is None else [partial]
    return results + [torch.from_numpy(item.logits) for item in candidates]


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(MODELS)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    consume=st.booleans(),
    data=st.data(),
)
def test_a_slice_made_from_another_is_the_one_loaded_from_scratch(
    name: str, dtype: str, consume: bool, data: st.DataObject
) -> None:
    # Given a shard of any shape, and another place in any other
    arch, weights = ARCHITECTURES[name], WEIGHTS[name]
    old_plan, old_place = data.draw(places(arch, dtype))
    plan, place = data.draw(places(arch, dtype))
    scratch = ShardModel(arch, plan, place, weights)
    weights.asked.clear()
    old = ShardModel(arch, old_plan, old_place, weights)
    old_outputs, had = outputs(arch, old), weights.asked[:]
    weights.asked.clear()
    # When the other is made with what the first has
    made = ShardModel(arch, plan, place, weights, previous=PreviousSlice(old, consume))
    # Then it has the same weights, counts the same bytes, and computes the same
    assert same_contents(made, scratch)
    assert made.weight_bytes == scratch.weight_bytes
    expected = outputs(arch, scratch)
    assert all(map(torch.equal, outputs(arch, made), expected))
    # And it fetched no row or column of a matrix that was there, and nothing for the same slice
    assert fetched_again(arch, had, weights.asked) == []
    assert made.fetched_bytes <= scratch.fetched_bytes
    if made.layers.overlap(old.layers).size:
        assert made.fetched_bytes < scratch.fetched_bytes
    if plan.same_slice(place, old_plan, old_place):
        assert made.fetched_bytes == 0
    # And the first one still runs, unless it was consumed
    if not consume:
        assert all(map(torch.equal, outputs(arch, old), old_outputs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_tied_embedding_is_fetched_once(shards: int, dtype: str) -> None:
    # Given a model whose head is its embedding
    name = "llama, grouped queries, tied"
    arch, weights = ARCHITECTURES[name], WEIGHTS[name]
    embed = arch.weight("embed")
    assert embed is not None
    weights.asked.clear()
    # When a shard of both is loaded
    model = ShardModel(arch, plan_for(arch, 1, shards, dtype=dtype), (0, 0), weights)
    # Then the table is fetched for one of them, and counts as loaded for both
    assert [name for name, _ in weights.asked].count(embed.tensor()) == 1
    assert model.fetched_bytes == model.weight_bytes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("consume", [False, True])
def test_an_unchanged_slice_fetches_nothing(name: str, consume: bool) -> None:
    # Given a shard
    arch, weights = ARCHITECTURES[name], WEIGHTS[name]
    plan = plan_for(arch, 1, 2)
    old = ShardModel(arch, plan, (0, 1), weights)
    # When it is made again from itself, under another epoch
    weights.asked.clear()
    made = ShardModel(
        arch, plan.with_epoch(9), (0, 1), weights, previous=PreviousSlice(old, consume)
    )
    # Then no tensor was asked for
    assert weights.asked == []
    assert made.fetched_bytes == 0


def test_a_chain_of_reused_slices_equals_loading_from_scratch() -> None:
    # Given a shard that goes from shape to shape, each made from the one before
    name = "llama, grouped queries, tied"
    arch, weights = ARCHITECTURES[name], WEIGHTS[name]
    previous: PreviousSlice | None = None
    for stages, shards, place in ((2, 2, (0, 1)), (1, 3, (0, 0)), (3, 1, (2, 0)), (1, 1, (0, 0))):
        plan = plan_for(arch, stages, shards)
        # When / Then each equals one loaded from scratch
        model = ShardModel(arch, plan, place, weights, previous=previous)
        assert same_contents(model, ShardModel(arch, plan, place, weights))
        previous = PreviousSlice(model, consume=True)


@pytest.mark.parametrize("change", [{"model": "another"}, {"dtype": "bfloat16"}])
def test_nothing_is_reused_of_another_model_or_dtype(change: dict[str, Any]) -> None:
    # Given a shard, and a plan for another model, or another dtype
    name = "llama, grouped queries, tied"
    arch, weights = ARCHITECTURES[name], WEIGHTS[name]
    options: dict[str, Any] = {"model": "d", "name": "", "stages": 1, "shards": 2}
    old = ShardModel(arch, plan_for(arch, **options), (0, 0), weights)
    # When its place is loaded
    plan = plan_for(arch, **{**options, **change})
    made = ShardModel(arch, plan, (0, 0), weights, previous=PreviousSlice(old))
    # Then all of it was fetched
    assert made.fetched_bytes == ShardModel(arch, plan, (0, 0), weights).fetched_bytes > 0


def test_a_consumed_slice_has_no_weights() -> None:
    # Given a shard whose weights another has taken over
    name = "qwen3, norms on queries and keys"
    arch, weights = ARCHITECTURES[name], WEIGHTS[name]
    plan = plan_for(arch, 1, 2)
    old = ShardModel(arch, plan, (0, 0), weights)
    ShardModel(arch, plan, (0, 1), weights, previous=PreviousSlice(old, consume=True))
    # Then it holds no tensors, so that memory never holds two slices
    assert contents(old) == {}
    assert (old._embedding, old._head, old._stack) == (None, None, None)


def test_weights_are_looked_up_by_their_units() -> None:
    # Given rows [4, 8) and [2, 3) of two roles, one above the other
    loaded = LoadedWeights()
    matrix = torch.arange(10.0).reshape(5, 2)
    loaded.add(("q", 0), matrix, (Range(4, 8), Range(2, 3)))
    # When parts of them are looked up / Then they are rows of the matrix
    assert loaded.get(("q", 0), (Range(4, 8), Range(2, 3))) is matrix
    assert loaded.get(("q", 0), (Range(4, 7), Range(2, 3))) is None
    above = loaded.overlap(("q", 0), 0, Range(6, 20), 0)
    assert above is not None
    assert above[0] == Range(6, 8)
    assert torch.equal(above[1], matrix[2:4])
    below = loaded.overlap(("q", 0), 1, Range(0, 9), 0)
    assert below is not None
    assert torch.equal(below[1], matrix[4:5])
    # And other rows are not
    assert loaded.overlap(("q", 0), 0, Range(8, 9), 0) is None
    assert loaded.overlap(("q", 1), 0, Range(4, 8), 0) is None
    loaded.forget(("q", 0))
    assert loaded.get(("q", 0), (Range(4, 8), Range(2, 3))) is None


@pytest.mark.parametrize(
    ("have", "rest"),
    [
        (None, [Range(2, 9)]),
        (Range(2, 9), []),
        (Range(2, 5), [Range(5, 9)]),
        (Range(5, 9), [Range(2, 5)]),
        (Range(4, 6), [Range(2, 4), Range(6, 9)]),
    ],
)
def test_ranges_left_to_fetch(have: Range | None, rest: list[Range]) -> None:
    # When / Then the parts that are not there, in order
    assert without(Range(2, 9), have) == rest
