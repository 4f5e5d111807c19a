"""Shards with quantised weights: their memory, and what a new slice reuses of the one before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_families import tiny_config
from plans import plan_for

from skynet.architecture.architecture import Architecture
from skynet.architecture.config import QUANTISED
from skynet.architecture.quantisable import format_of
from skynet.architecture.tensors import staged_tensors, stored_weights
from skynet.errors import CheckpointError, PlanError
from skynet.layers.linear import JoinedLinear, Linear
from skynet.layers.regions import groups_of
from skynet.layers.shard_model import PreviousSlice, ShardModel
from skynet.models.registry import load_architecture
from skynet.planning.memory import shard_weight_bytes
from skynet.planning.ranges import Range
from skynet.wire.blocks import BlockFormat
from skynet.wire.quantised import Layout

COLUMNS = {"intermediate_size": 96}


def architecture(family: str, layouts: tuple[Layout, ...], **fields: Any) -> Architecture:
    """A family's tiny model, whose tensors have these layouts in turn."""
    config = tiny_config(family, **fields).to_dict()
    formats = {}
    for number, (stack, weight, name) in enumerate(stored_weights(load_architecture(config))):
        form = format_of(stack, weight, layouts[number % len(layouts)])
        if form is not None:
            formats[name] = str(form)
    return load_architecture(config | {QUANTISED: formats})


class Weights:
    """Random tensors by region, the same for every caller; counts what is fetched."""

    def __init__(self, arch: Architecture) -> None:
        generator = torch.Generator().manual_seed(4)
        staged = staged_tensors(arch)
        self.axes = {tensor.name: tensor.axis for tensor in staged}
        self.tensors = {
            tensor.name: torch.randint(0, 60, tensor.shape, generator=generator, dtype=torch.uint8)
            if tensor.name in arch.formats
            else torch.rand(tuple(tensor.shape), generator=generator)
            for tensor in staged
        }
        self.fetched: list[str] = []

    def __call__(self, name: str, region: Range) -> torch.Tensor:
        self.fetched.append(name)
        return self.tensors[name].narrow(self.axes[name], region.start, region.size)


def contents(model: ShardModel) -> dict[Any, torch.Tensor]:
    return {
        key: made.dense() if isinstance(made, Linear) else made
        for key, (made, _) in model._weights.entries.items()
    }


@pytest.mark.parametrize("layouts", [("q4",), ("q8",), ("q4", "q8", "q8")])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "phi3"])
def test_bytes_are_what_the_plan_says(family: str, layouts: tuple[Layout, ...]) -> None:
    # Given every shard of a plan
    arch = architecture(family, layouts, **COLUMNS)
    plan = plan_for(arch, 2, 3)
    for stage, shard in plan.addresses():
        # When it is loaded
        model = ShardModel(arch, plan, (stage, shard), Weights(arch))
        # Then it weighs what the planner expected, and no more than that was fetched
        assert model.weight_bytes == shard_weight_bytes(arch, plan, stage, shard)
        assert 0 < model.fetched_bytes <= model.weight_bytes


@pytest.mark.parametrize("family", ["llama", "falcon", "mixtral"])
@pytest.mark.parametrize("consume", [True, False])
@pytest.mark.parametrize("layouts", [("q4",), ("q8", "q4")])
def test_a_new_slice_reuses_the_one_before(
    family: str, consume: bool, layouts: tuple[Layout, ...]
) -> None:
    # Given a shard of 1 x 2
    fields = {"ffn_hidden_size": 96} if family == "falcon" else COLUMNS
    arch = architecture(family, layouts, **fields)
    weights = Weights(arch)
    before, after = plan_for(arch, 1, 2), plan_for(arch, 1, 3)
    for shard in range(2):
        previous = ShardModel(arch, before, (0, shard), weights)
        # When it becomes one of 1 x 3
        for other in range(3):
            fresh = ShardModel(arch, after, (0, other), weights)
            previous = ShardModel(arch, before, (0, shard), weights)
            made = ShardModel(
                arch, after, (0, other), weights, previous=PreviousSlice(previous, consume)
            )
            # Then it has what a fresh one has, and fetched less if their parts overlap
            expected, reused = contents(fresh), contents(made)
            assert reused.keys() == expected.keys()
            assert all(torch.equal(reused[key], expected[key]) for key in expected)
            assert made.fetched_bytes <= fresh.fetched_bytes
        assert made.fetched_bytes < fresh.fetched_bytes or shard == 0


def test_products_of_several_forms_are_joined() -> None:
    # Given a layer whose value projection has another layout than query and key
    arch = architecture("llama", ("q4",), **COLUMNS)
    value = "model.layers.0.self_attn.v_proj.weight"
    arch = arch.quantised({**arch.formats, value: BlockFormat("q8", 16, "float32")})
    plan = plan_for(arch, 1, 1)
    # When it is loaded
    model = ShardModel(arch, plan, (0, 0), Weights(arch))
    # Then its products are two, end to end, and are counted
    layer = model._stack.of(Range(0, 1))[0]  # type: ignore[union-attr]
    assert isinstance(layer.mixers[0]._qkv, JoinedLinear)  # type: ignore[attr-defined]
    assert model.weight_bytes == shard_weight_bytes(arch, plan, 0, 0)


def test_columns_are_cut_in_groups() -> None:
    arch = architecture("llama", ("q4",), **COLUMNS)
    cuts = [part.columns for part in plan_for(arch, 1, 4).stages[0].shards]
    assert all(cut.start % 32 == cut.stop % 32 == 0 for cut in cuts)
    assert cuts[-1].stop == 96


def test_a_shard_that_divides_a_group_is_refused() -> None:
    arch = architecture("llama", ("q4",), **COLUMNS)
    weight = arch.weight("down")
    assert weight is not None
    with pytest.raises(PlanError, match=r"\[16, 48\) divide a group of 32"):
        groups_of(Range(16, 48), BlockFormat("q4", 32, "float16"), weight)


def test_formats_that_are_not_known_are_refused() -> None:
    config = tiny_config("llama").to_dict()
    for written in ({"a.weight": "q3_32_float16"}, ["q4"], {"a.weight": 4}):
        with pytest.raises(CheckpointError, match="split the model again"):
            load_architecture(config | {QUANTISED: written})
