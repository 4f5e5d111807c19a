from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_families import tiny_config
from safetensors.torch import load_file, save_file

from skynet.architecture.architecture import Architecture
from skynet.architecture.packed import Packed
from skynet.checkpoint.checkpoint import Checkpoint, open_checkpoint
from skynet.checkpoint.formats import mxfp4
from skynet.checkpoint.packed_experts import packed_experts
from skynet.checkpoint.safetensors_file import read_header
from skynet.checkpoint.staged_form import in_staged_form
from skynet.checkpoint.tensor_plans import tensor_plans
from skynet.errors import CheckpointError
from skynet.models.registry import load_architecture

EXPERTS, COLUMNS, HIDDEN = 3, 32, 64
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "intermediate_size": COLUMNS,
    "num_hidden_layers": 1,
    "num_local_experts": EXPERTS,
}
IN, OUT = "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"
ROLES = ("gate", "up", "down")

Tensors = dict[str, torch.Tensor]


def arch() -> Architecture:
    return load_architecture(tiny_config("granitemoe", **SIZES).to_dict())


def experts(seed: int = 0) -> list[Tensors]:
    """Each expert's matrices (out, in), and biases."""
    made = torch.Generator().manual_seed(seed)
    shapes = {"gate": (COLUMNS, HIDDEN), "up": (COLUMNS, HIDDEN), "down": (HIDDEN, COLUMNS)}
    return [
        {role: torch.randn(shape, generator=made) for role, shape in shapes.items()}
        | {f"{role}_bias": torch.randn(shape[0], generator=made) for role, shape in shapes.items()}
        for _ in range(EXPERTS)
    ]


def in_turns(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.stack([one, other], dim=1).flatten(0, 1)


# How a file has all experts' tensors: where a role is in them, and the tensors.
def end_to_end(each: list[Tensors]) -> Tensors:
    return {
        "in": torch.stack([torch.cat([e["gate"], e["up"]]) for e in each]),
        "out": torch.stack([e["down"] for e in each]),
    }


def merged(each: list[Tensors]) -> Tensors:
    return {name: tensor.flatten(0, 1) for name, tensor in end_to_end(each).items()}


def transposed_in_turns(each: list[Tensors]) -> Tensors:
    return {
        "in": torch.stack([in_turns(e["gate"], e["up"]).t() for e in each]),
        "in_bias": torch.stack([in_turns(e["gate_bias"], e["up_bias"]) for e in each]),
        "out": torch.stack([e["down"].t() for e in each]),
        "out_bias": torch.stack([e["down_bias"] for e in each]),
    }


LAYOUTS: dict[str, tuple[dict[str, Packed], Callable[[list[Tensors]], Tensors]]] = {
    "end to end": (
        {
            "gate": Packed("in", parts=2),
            "up": Packed("in", part=1, parts=2),
            "down": Packed("out"),
        },
        end_to_end,
    ),
    "experts and rows in one axis": (
        {
            "gate": Packed("in", parts=2),
            "up": Packed("in", part=1, parts=2),
            "down": Packed("out"),
        },
        merged,
    ),
    "transposed and in turns": (
        {
            "gate": Packed("in", "in_bias", True, part=0, parts=2, interleaved=True),
            "up": Packed("in", "in_bias", True, part=1, parts=2, interleaved=True),
            "down": Packed("out", "out_bias", True),
        },
        transposed_in_turns,
    ),
}


def with_layout(layout: dict[str, Packed]) -> Architecture:
    described = arch()
    weights = tuple(
        replace(weight, packed=layout[weight.role], bias=bool(layout[weight.role].bias))
        if weight.role in layout
        else weight
        for weight in described.weights
    )
    return replace(described, weights=weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_expert_is_a_tensor_of_its_own(layout: str, tmp_path: Path) -> None:
    # Given a file with all experts in one tensor
    each, (packed, pack) = experts(), LAYOUTS[layout]
    save_file({k: v.contiguous() for k, v in pack(each).items()}, tmp_path / "a.safetensors")
    described = with_layout(packed)
    # When its experts are presented one by one
    views = packed_experts(described, read_header(tmp_path / "a.safetensors"), {}).numbers
    # Then every region of every expert's matrix and bias is what was stored
    for role, (expert, tensors) in ((r, pair) for r in ROLES for pair in enumerate(each)):
        weight = described.weight(role)
        assert weight is not None
        kinds = {"weight": role} | ({"bias": f"{role}_bias"} if weight.bias else {})
        for kind, key in kinds.items():
            view, expected = views[weight.tensor(0, kind, expert)], tensors[key].numpy()
            assert view.shape == expected.shape
            for axis, size in enumerate(expected.shape):
                for start, stop in [(0, size), (3, 17), (size - 1, size), (5, 5)]:
                    region = view.read(axis, start, stop)
                    assert region.flags.c_contiguous
                    index = (slice(None),) * axis + (slice(start, stop),)
                    np.testing.assert_array_equal(region, expected[index])


def test_a_region_outside_of_an_expert(tmp_path: Path) -> None:
    packed, pack = LAYOUTS["end to end"]
    save_file(pack(experts()), tmp_path / "a.safetensors")
    views = packed_experts(with_layout(packed), read_header(tmp_path / "a.safetensors"), {}).numbers
    with pytest.raises(CheckpointError, match="there is no \\[30, 33\\) along axis 0"):
        next(iter(views.values())).read(0, 30, 33)


def test_mxfp4_experts_keep_their_codes(tmp_path: Path) -> None:
    # Given blocks and scales of all experts, gate and up in turns
    made = np.random.default_rng(0)
    shape = (EXPERTS, 2 * COLUMNS, HIDDEN // 32)
    blocks = made.integers(0, 256, (*shape, 16), np.uint8)
    scales = made.integers(120, 130, shape, np.uint8)
    tensors = {"in_blocks": torch.from_numpy(blocks), "in_scales": torch.from_numpy(scales)}
    save_file(tensors, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    layout = LAYOUTS["transposed and in turns"][0]
    # When they are presented one by one
    views = packed_experts(with_layout(layout), header, mxfp4.matrices({}, header))
    # Then each has the codes and scales of its outputs
    for role, first in (("gate", 0), ("up", 1)):
        for expert in range(EXPERTS):
            name = f"model.layers.0.block_sparse_moe.experts.{expert}.{role}_proj.weight"
            decoded = mxfp4.decode(
                blocks[expert, first::2].reshape(COLUMNS, -1), scales[expert, first::2]
            )
            for start, stop in [(0, COLUMNS), (3, 7), (4, 4)]:
                read = views.quantised[name].read(0, start, stop)
                np.testing.assert_array_equal(read.codes, decoded.codes[start:stop])
                np.testing.assert_array_equal(read.scales, decoded.scales[start:stop])
            right = views.quantised[name].read(1, 32, 64)
            np.testing.assert_array_equal(right.codes, decoded.codes[:, 32:])


def save(directory: Path, tensors: Tensors) -> Checkpoint:
    directory.mkdir()
    config = tiny_config("granitemoe", **SIZES).to_dict()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return open_checkpoint(str(directory), directory / "cache")


def whole_model(*, is_packed: bool) -> Tensors:
    described, each = arch(), experts(1)
    made: Tensors = {}
    generator = torch.Generator().manual_seed(2)
    for weight in described.weights:
        if weight.packed is None:
            made[weight.tensor(0)] = torch.randn(described.shape(weight), generator=generator)
        elif not is_packed:
            for expert, tensors in enumerate(each):
                made[weight.tensor(0, piece=expert)] = tensors[weight.role]
    if is_packed:
        packed = end_to_end(each)
        names = {f"model.layers.0.{IN}": "in", f"model.layers.0.{OUT}": "out"}
        made |= {name: packed[key] for name, key in names.items()}
    return made


@pytest.mark.parametrize("weights", [None, "bf16", "q8", "q4"])
def test_a_packed_file_is_staged_as_one_with_experts_one_by_one(
    weights: str | None, tmp_path: Path
) -> None:
    # Given the same model with its experts packed, and one by one
    sources = [
        in_staged_form(save(tmp_path / str(is_packed), whole_model(is_packed=is_packed)), weights)
        for is_packed in (True, False)
    ]
    # When both are staged
    plans = [tensor_plans(source, load_architecture(source.config)) for source in sources]
    # Then the tensors are the same, tile by tile
    assert plans[0] == plans[1]
    assert len(plans[0]) == 10 + 3 * EXPERTS
    for plan in plans[0].values():
        for tile in plan.tile_ranges(512):
            one, other = (
                source.read(plan.source_name, plan.axis, tile.start, tile.stop)
                for source in sources
            )
            np.testing.assert_array_equal(one, other)


def test_the_digest_is_of_the_stored_tensors(tmp_path: Path) -> None:
    one = whole_model(is_packed=True)
    other = {name: tensor.clone() for name, tensor in one.items()}
    other[f"model.layers.0.{OUT}"][-1, -1, -1] += 1
    digests = [save(tmp_path / name, made).digest() for name, made in (("a", one), ("b", other))]
    assert digests[0] != digests[1]


def test_a_prefix_that_a_file_lacks(tmp_path: Path) -> None:
    # Given a packed file of the base model alone, whose names have no "model."
    tensors = {name.removeprefix("model."): t for name, t in whole_model(is_packed=True).items()}
    checkpoint = save(tmp_path / "base", tensors)
    # Then its experts have no prefix either
    plans = tensor_plans(checkpoint, load_architecture(checkpoint.config))
    name = "layers.0.block_sparse_moe.experts.2.up_proj.weight"
    assert plans[f"model.{name}"].source_name == name


def test_a_packed_tensor_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    tensors = whole_model(is_packed=True)
    tensors[f"model.layers.0.{IN}"] = torch.zeros(EXPERTS + 1, 2 * COLUMNS, HIDDEN)
    with pytest.raises(CheckpointError, match=r"input_linear.weight has shape \[4, 64, 64\].*\[3,"):
        save(tmp_path / "other", tensors)


def test_what_transformers_saves_is_packed(tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(tiny_config("granitemoe", **SIZES))
    model.save_pretrained(tmp_path)
    assert f"model.layers.0.{IN}" in load_file(tmp_path / "model.safetensors")
