"""A checkpoint in the form in which it is staged: which matrices, their groups and regions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_families import tiny_config
from safetensors.torch import save_file

from skynet.architecture.tensors import staged_tensors, stored_weights
from skynet.checkpoint.bad_numbers import bad_tensors
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.safetensors_file import TensorInfo
from skynet.checkpoint.staged_form import in_staged_form
from skynet.checkpoint.tensor_plans import TensorPlan, tensor_plans
from skynet.errors import CheckpointError, PlanError, UnsupportedModel
from skynet.models.registry import load_architecture
from skynet.staging.split import narrowest
from skynet.transformers_backend.opening import describe
from skynet.wire.blocks import BlockFormat, from_blocks
from skynet.wire.quantised import Quantised, quantise

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 704,
    "vocab_size": 1000,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LAYER = "model.layers.0."
DOWN, EMBED = LAYER + "mlp.down_proj.weight", "model.embed_tokens.weight"


def checkpoint_of(config: dict[str, Any], path: Path, dtype: torch.dtype) -> Checkpoint:
    """Random weights of this config."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        tensor.name: torch.randn(tensor.shape, generator=generator).to(dtype)
        for tensor in staged_tensors(load_architecture(config))
    }
    save_file(tensors, path / "model.safetensors")
    return Checkpoint(path, "tiny", path / "cache")


@pytest.fixture
def llama(tmp_path: Path) -> Checkpoint:
    return checkpoint_of(LLAMA, tmp_path / "llama", torch.bfloat16)


def plans_of(source: Any) -> dict[str, TensorPlan]:
    return tensor_plans(source, load_architecture(source.config))


@pytest.mark.parametrize(("weights", "bits"), [("q4", 5.1), ("q8", 9.0), ("bf16", 16.1)])
def test_staged_bytes_are_few(llama: Checkpoint, weights: str, bits: float) -> None:
    # Given a model whose sizes are those of groups
    source = in_staged_form(llama, weights)
    # When it is staged / Then its matrices take few bits a weight
    plans = plans_of(source)
    matrices = {name: plan for name, plan in plans.items() if len(plan.shape) > 1}
    numbers = sum(int(np.prod(llama.tensors[name].shape)) for name in matrices)
    assert sum(plan.num_bytes for plan in matrices.values()) * 8 / numbers <= bits
    # And norms stay as they are
    assert {plans[name].dtype for name in plans.keys() - matrices.keys()} == {"bfloat16"}


def test_as_the_checkpoint_has_them(llama: Checkpoint) -> None:
    assert in_staged_form(llama) is llama


def test_each_form_is_a_model_of_its_own(llama: Checkpoint) -> None:
    forms: list[tuple[str | None, bool]] = [
        (None, False),
        ("bf16", False),
        ("q8", False),
        ("q4", False),
        ("q4", True),
    ]
    digests = {in_staged_form(llama, *form).digest() for form in forms}
    assert len(digests) == len(forms)
    assert in_staged_form(llama, "q4").digest() in digests


@pytest.mark.parametrize("weights", ["q4", "q8"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral", "bloom"])
def test_regions_are_regions_of_the_quantised_matrix(
    tmp_path: Path, family: str, weights: str
) -> None:
    # Given a family's checkpoint, of fused, transposed or single tensors
    size = {"n_inner": 96} if family == "gpt2" else {"intermediate_size": 96}
    config = json.loads(tiny_config(family, **({} if family == "bloom" else size)).to_json_string())
    checkpoint = checkpoint_of(config, tmp_path / family, torch.float32)
    source = in_staged_form(checkpoint, weights)
    arch = load_architecture(source.config)
    assert arch.formats
    transposed = {name for _, weight, name in stored_weights(arch) if weight.transposed}
    for name, plan in plans_of(source).items():
        form = arch.formats.get(name)
        if form is None:
            continue
        # When the tensor is read tile by tile, along the axis that it is cut in
        tiles = [
            source.read(plan.source_name, plan.axis, part.start, part.stop)
            for part in plan.tile_ranges(700)
        ]
        matrix = from_blocks(np.concatenate(tiles, axis=plan.axis), form)
        # Then the tiles together are the matrix, (out, in), quantised at once
        whole = checkpoint.read(name, 0, 0, checkpoint.tensors[name].shape[0])
        numbers = whole.T if name in transposed else whole
        expected = quantise(numbers, form.layout, form.group)
        np.testing.assert_array_equal(matrix.dequantised(), expected.dequantised())


def test_groups_end_where_shards_do(tmp_path: Path) -> None:
    # Given heads of 80, which divide groups of 32, and columns of which 16 remain
    fields = {"hidden_size": 320, "head_dim": 80, "intermediate_size": 720}
    checkpoint = checkpoint_of(LLAMA | fields, tmp_path / "llama", torch.bfloat16)
    # When it is quantised
    arch = load_architecture(in_staged_form(checkpoint, "q4").config)
    # Then groups are as large as they may be
    groups = {name.removeprefix(LAYER): form.group for name, form in arch.formats.items()}
    assert groups["self_attn.q_proj.weight"] == 32
    assert groups["self_attn.o_proj.weight"] == 16
    assert groups["mlp.down_proj.weight"] == 16


def test_a_matrix_that_cannot_be_cut_in_groups_stays_numbers(tmp_path: Path) -> None:
    # Given heads of 12 and 83 columns
    fields = {"hidden_size": 48, "head_dim": 12, "intermediate_size": 83}
    checkpoint = checkpoint_of(LLAMA | fields, tmp_path / "llama", torch.bfloat16)
    source = in_staged_form(checkpoint, "q8")
    # When it is quantised / Then inputs that no group divides stay as they are
    plans = plans_of(source)
    plain = {name for name, plan in plans.items() if plan.dtype == "bfloat16"}
    assert {DOWN, LAYER + "self_attn.o_proj.weight"} <= plain
    assert plans[LAYER + "self_attn.q_proj.weight"].dtype == "q8_16_float16"
    # And the plan keeps those in bfloat16 in memory
    assert narrowest(plans, load_architecture(source.config), "float32") == "bfloat16"


def test_embedding_and_head_may_be_kept(llama: Checkpoint) -> None:
    plans = plans_of(in_staged_form(llama, "q4", keep_embeddings=True))
    assert plans[EMBED].dtype == plans["lm_head.weight"].dtype == "bfloat16"
    assert plans[DOWN].dtype == "q4_32_float16"


def test_bfloat16_is_rounded_to_nearest(tmp_path: Path) -> None:
    # Given a checkpoint in float32
    checkpoint = checkpoint_of(LLAMA, tmp_path / "llama", torch.float32)
    source = in_staged_form(checkpoint, "bf16")
    plans = plans_of(source)
    assert narrowest(plans, load_architecture(source.config), "float32") == "bfloat16"
    # When a tensor is read / Then its numbers are PyTorch's
    numbers = torch.from_numpy(checkpoint.read(DOWN, 1, 5, 90))
    bits = torch.from_numpy(source.read(DOWN, 1, 5, 90)).view(torch.bfloat16)
    assert torch.equal(bits, numbers.bfloat16())


def test_float16_matrices_stay_so_beside_float32_tensors(tmp_path: Path) -> None:
    # Given a mixture of experts whose matrices are float16, and norms and routers float32
    config = json.loads(tiny_config("mixtral").to_json_string())
    checkpoint = checkpoint_of(config, tmp_path / "mixtral", torch.float16)
    arch, plans = load_architecture(config), plans_of(checkpoint)
    plans = {
        name: replace(plan, dtype="float32")
        if len(plan.shape) < 2 or name.endswith(".gate.weight")
        else plan
        for name, plan in plans.items()
    }
    assert {plan.dtype for plan in plans.values() if len(plan.shape) > 1} == {"float16", "float32"}
    # When / Then the plan keeps the matrices in float16, unless it computes in fewer bits
    assert narrowest(plans, arch, "float32") == "float16"
    assert narrowest(plans, arch, "bfloat16") == "bfloat16"
    # Given a matrix that is float32 too / When / Then nothing is rounded
    wide = next(name for name in plans if name.endswith("q_proj.weight"))
    plans[wide] = replace(plans[wide], dtype="float32")
    assert narrowest(plans, arch, "float32") == "float32"


class Source:
    """A quantised matrix of a file."""

    def __init__(self, matrix: Quantised) -> None:
        self._matrix = matrix
        self.layout, self.group, self.shape = matrix.layout, matrix.group, matrix.shape
        self.scale_dtype: Any = matrix.scales.dtype.name

    def read(self, axis: int, start: int, stop: int) -> Quantised:
        matrix, width = self._matrix, 1 if self.layout == "q8" else 2
        assert axis == 0 or start % self.group == stop % self.group == 0
        rows = slice(start, stop) if axis == 0 else slice(None)

        def columns(unit: int) -> slice:
            return slice(start // unit, stop // unit) if axis == 1 else slice(None)

        groups = columns(self.group)
        minimums = None if matrix.minimums is None else matrix.minimums[rows, groups]
        codes = matrix.codes[rows, columns(width)]
        return Quantised(self.layout, self.group, codes, matrix.scales[rows, groups], minimums)


def with_sources(checkpoint: Checkpoint, layout: str, group: int, *names: str) -> Checkpoint:
    """The checkpoint, with these of its tensors as if they were quantised in its file."""
    for name in names:
        info = checkpoint.tensors[name]
        numbers = np.random.default_rng(2).normal(size=info.shape).astype(np.float32)
        source = Source(quantise(numbers, layout, group))  # type: ignore[arg-type]
        checkpoint.quantised[name] = source
        checkpoint.tensors[name] = TensorInfo(info.shape, layout, info.file, info.offset, 0)
    return checkpoint


def test_what_a_file_has_quantised_stays_so(llama: Checkpoint) -> None:
    # Given a file with groups of 64, more than a shard's columns are cut in
    query = LAYER + "self_attn.q_proj.weight"
    checkpoint = with_sources(llama, "q4", 64, query, DOWN)
    expected = checkpoint.quantised[DOWN].read(0, 0, 256).dequantised()
    # When it is staged as it is
    source = in_staged_form(checkpoint)
    plans = plans_of(source)
    # Then its codes are, in groups that shards can cut, and the others are numbers
    assert plans[query].dtype == "q4_64_float16"
    assert plans[DOWN].dtype == "q4_32_float16"
    assert plans[EMBED].dtype == "bfloat16"
    blocks = source.read(DOWN, 1, 3, 20)
    matrix = from_blocks(blocks, BlockFormat("q4", 32, "float16"))
    np.testing.assert_array_equal(matrix.dequantised(), expected[:, 3 * 32 : 20 * 32])
    # And another form may be asked for
    assert plans_of(in_staged_form(checkpoint, "q8"))[DOWN].dtype == "q8_32_float16"
    assert plans_of(in_staged_form(checkpoint, "bf16"))[DOWN].dtype == "bfloat16"


def test_a_quantised_matrix_that_no_group_divides_becomes_numbers(tmp_path: Path) -> None:
    # Given columns in groups of 4
    fields = {"hidden_size": 64, "intermediate_size": 84}
    checkpoint = checkpoint_of(LLAMA | fields, tmp_path / "llama", torch.bfloat16)
    source = in_staged_form(with_sources(checkpoint, "q8", 4, DOWN))
    # When it is staged / Then it is float32, of the numbers that the codes mean
    assert plans_of(source)[DOWN].dtype == "float32"
    expected = checkpoint.quantised[DOWN].read(0, 0, 64).dequantised()
    np.testing.assert_array_equal(source.read(DOWN, 1, 3, 50), expected[:, 3:50])


def test_a_source_of_another_shape_is_refused(llama: Checkpoint) -> None:
    with_sources(llama, "q8", 32, DOWN)
    llama.quantised[EMBED] = llama.quantised[DOWN]
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape \[256, 704\]"):
        in_staged_form(llama)


def test_bad_scales_are_counted(llama: Checkpoint) -> None:
    # Given a file with an infinite scale
    checkpoint = with_sources(llama, "q8", 32, DOWN)
    checkpoint.quantised[DOWN]._matrix.scales[3, 1] = np.inf  # type: ignore[attr-defined]
    source = in_staged_form(checkpoint)
    # When / Then all weights of the group are bad
    assert bad_tensors(source, plans_of(source)) == {DOWN: 32}


def test_other_words_are_refused(llama: Checkpoint) -> None:
    with pytest.raises(PlanError, match=r"weights 'int4' is not supported; known: \['bf16'"):
        in_staged_form(llama, "int4")


def test_the_transformers_backend_takes_no_quantised_weights(tmp_path: Path) -> None:
    # Given a model without a family file
    config = json.loads(tiny_config("arcee").to_json_string())
    path = tmp_path / "arcee"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(tiny_config("arcee"))
    model.save_pretrained(path)
    checkpoint = Checkpoint(path, "tiny", tmp_path / "cache")
    describe(checkpoint)
    # When / Then
    with pytest.raises(UnsupportedModel, match="'arcee' runs on the Transformers backend"):
        in_staged_form(checkpoint, "q4")
    assert in_staged_form(checkpoint, "bf16").digest() != checkpoint.digest()
