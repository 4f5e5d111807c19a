"""Quantised checkpoints: the numbers that the published layouts mean, by region."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.formats import mxfp4
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.transformers_backend.opening import open_model
from tests.published_formats import awq, gptq, pack_quantized, words_of, write_checkpoint

OUT, IN, GROUP = 24, 64, 32
NAME = "model.layers.0.mlp.up_proj.weight"
PREFIX = NAME.removesuffix("weight")
RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(0, 16, (OUT, IN), dtype=np.uint8)
WIDE = RANDOM.integers(0, 256, (OUT, IN), dtype=np.uint8)
SCALES = RANDOM.uniform(0.001, 0.01, (OUT, IN // GROUP)).astype(np.float16)
PER_OUTPUT = SCALES[:, :1]
ZEROS = RANDOM.integers(1, 16, SCALES.shape, dtype=np.uint8)
MIDDLE, WIDE_MIDDLE = np.full_like(ZEROS, 8), np.full_like(ZEROS, 128)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
FP8 = {"quant_method": "fp8", "fmt": "e4m3"}
CT = {"quant_method": "compressed-tensors"}
PACKED, INT, FLOAT = ({**CT, "format": f"{kind}-quantized"} for kind in ("pack", "int", "float"))
ACT_ORDER = RANDOM.permutation(IN) // GROUP


def opened(
    tmp_path: Path, settings: dict[str, Any], parts: dict[str, Any], **plain: Any
) -> Checkpoint:
    tensors = {PREFIX + part: value for part, value in parts.items()} | plain
    directory = write_checkpoint(tmp_path / "model", {"model_type": "none"}, tensors, settings)
    return Checkpoint(directory, "model", tmp_path / "cache")


def numbers(codes: np.ndarray, scales: np.ndarray, zeros: Any) -> np.ndarray:
    """The definition: scale x (code - zero), group by group."""
    times = codes.shape[1] // scales.shape[1]
    scale = scales.astype(np.float64).repeat(times, axis=1)
    return scale * (
        codes.astype(np.float64) - np.broadcast_to(zeros, scales.shape).repeat(times, axis=1)
    )


def bfloat16(scales: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(scales.astype(np.float32)).bfloat16()


def as_bfloat16(scales: np.ndarray) -> np.ndarray:
    return bfloat16(scales).float().numpy()


EXACT: dict[str, tuple[dict[str, Any], dict[str, Any], np.ndarray, str]] = {
    "gptq": (GPTQ, gptq(CODES, SCALES, MIDDLE), numbers(CODES, SCALES, MIDDLE), "q4 32 float16"),
    "gptq-zeros": (
        {**GPTQ, "sym": False},
        gptq(CODES, SCALES, ZEROS),
        numbers(CODES, SCALES, ZEROS),
        "q4 32 float32",
    ),
    "gptq-v2": (
        {**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"},
        gptq(CODES, SCALES, ZEROS, less=0),
        numbers(CODES, SCALES, ZEROS),
        "q4 32 float32",
    ),
    "gptq-one-group": (
        {**GPTQ, "group_size": -1},
        gptq(CODES, PER_OUTPUT, MIDDLE[:, :1], g_idx=np.zeros(IN, np.int32)),
        numbers(CODES, PER_OUTPUT, MIDDLE[:, :1]),
        "q4 64 float16",
    ),
    "gptq-8": (
        {**GPTQ, "bits": 8},
        gptq(WIDE, SCALES, WIDE_MIDDLE, bits=8),
        numbers(WIDE, SCALES, WIDE_MIDDLE),
        "q8 32 float16",
    ),
    "awq": (AWQ, awq(CODES, SCALES, ZEROS), numbers(CODES, SCALES, ZEROS), "q4 32 float32"),
    "int4": (PACKED, pack_quantized(CODES, SCALES), numbers(CODES, SCALES, 8), "q4 32 float16"),
    "int4-zeros": (
        PACKED,
        pack_quantized(CODES, SCALES, ZEROS),
        numbers(CODES, SCALES, ZEROS),
        "q4 32 float32",
    ),
    "int4-bfloat16-channel": (
        PACKED,
        {**pack_quantized(CODES, PER_OUTPUT), "weight_scale": bfloat16(PER_OUTPUT)},
        numbers(CODES, as_bfloat16(PER_OUTPUT), 8),
        "q4 64 float32",
    ),
    "int8-packed": (
        PACKED,
        pack_quantized(WIDE, SCALES, bits=8),
        numbers(WIDE, SCALES, 128),
        "q8 32 float16",
    ),
    "int8": (
        INT,
        {"weight": (WIDE ^ 128).view(np.int8), "weight_scale": bfloat16(PER_OUTPUT)},
        numbers(WIDE, as_bfloat16(PER_OUTPUT), 128),
        "q8 64 float32",
    ),
    "int8-one-scale": (
        INT,
        {"weight": (WIDE ^ 128).view(np.int8), "weight_scale": SCALES[:1, :1].reshape(1)},
        numbers(WIDE, SCALES[:1, :1].repeat(OUT, axis=0), 128),
        "q8 64 float16",
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_a_matrix_has_the_numbers_of_its_definition(tmp_path: Path, case: str) -> None:
    # Given
    settings, parts, expected, properties = EXACT[case]
    # When
    checkpoint = opened(tmp_path, settings, parts)
    matrix = checkpoint.quantised[NAME]
    # Then it is offered by the weight's name, in the layout that holds it
    assert f"{matrix.layout} {matrix.group} {matrix.scale_dtype}" == properties
    assert checkpoint.tensors[NAME].shape == matrix.shape == (OUT, IN)
    assert checkpoint.tensors[NAME].dtype == matrix.layout
    assert "quantization_config" not in checkpoint.config
    # And every region has its numbers
    for axis, start, stop in [(0, 0, OUT), (0, 3, 13), (0, 23, 24), (1, 0, IN)]:
        region = matrix.read(axis, start, stop)
        wanted = expected.take(range(start, stop), axis)
        assert (region.group, region.scales.dtype.name) == (matrix.group, matrix.scale_dtype)
        np.testing.assert_allclose(region.dequantised(), wanted, rtol=3e-7, atol=1e-9)
    half = matrix.read(1, IN - matrix.group, IN).dequantised()
    np.testing.assert_allclose(half, expected[:, IN - matrix.group :], rtol=3e-7, atol=1e-9)
    np.testing.assert_allclose(checkpoint.read(NAME, 1, 7, 50), expected[:, 7:50], rtol=3e-7)


def fp8(shape: tuple[int, int]) -> tuple[torch.Tensor, np.ndarray]:
    weight = torch.from_numpy(RANDOM.normal(size=shape).astype(np.float32)).to(torch.float8_e4m3fn)
    return weight, weight.float().numpy()


BIG, BIG_NUMBERS = fp8((160, 288))
BLOCKS = RANDOM.uniform(0.001, 0.01, (2, 3)).astype(np.float32)
TINY, TINY_NUMBERS = fp8((OUT, IN))
NARROW = {
    "blocks": (
        {**FP8, "weight_block_size": [128, 128]},
        {"weight": BIG, "weight_scale_inv": BLOCKS},
        BIG_NUMBERS * BLOCKS.repeat(128, axis=0)[:160].repeat(128, axis=1)[:, :288],
    ),
    "channels": (
        FLOAT,
        {"weight": TINY, "weight_scale": bfloat16(PER_OUTPUT)},
        TINY_NUMBERS * as_bfloat16(PER_OUTPUT),
    ),
    "fbgemm": (
        {"quant_method": "fbgemm_fp8"},
        {"weight": TINY, "weight_scale": PER_OUTPUT.astype(np.float32)},
        TINY_NUMBERS * PER_OUTPUT.astype(np.float32),
    ),
    "one-scale": (
        FLOAT,
        {"weight": TINY, "weight_scale": np.array([0.25], np.float32)},
        TINY_NUMBERS * 0.25,
    ),
    "act-order": (
        {**GPTQ, "desc_act": True, "sym": False},
        gptq(CODES, SCALES, ZEROS, g_idx=ACT_ORDER.astype(np.int32)),
        SCALES[:, ACT_ORDER] * (CODES.astype(np.float32) - ZEROS[:, ACT_ORDER]),
    ),
    "gptq-8-zeros": (
        {**GPTQ, "bits": 8, "sym": False},
        gptq(WIDE, SCALES, ZEROS, bits=8),
        numbers(WIDE, SCALES, ZEROS),
    ),
}


@pytest.mark.parametrize("case", NARROW)
def test_numbers_that_q8_does_not_hold_are_rounded_and_named(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    settings, parts, expected = NARROW[case]
    # When
    with caplog.at_level(logging.WARNING):
        matrix = opened(tmp_path, settings, parts).quantised[NAME]
    # Then a warning names them
    assert "rounded to q8: 1 of " in caplog.text
    # And no number is further off than half a step
    assert (matrix.layout, matrix.group) == ("q8", 32)
    grouped = expected.reshape(len(expected), -1, 32)
    error = np.abs(matrix.read(0, 0, len(expected)).dequantised().reshape(grouped.shape) - grouped)
    assert (error / np.abs(grouped).max(axis=2, keepdims=True)).max() < 0.5 / 127 + 2**-11
    # And parts of it are the same numbers
    part = matrix.read(0, 5, 17).dequantised()
    np.testing.assert_array_equal(part, matrix.read(1, 0, matrix.shape[1]).dequantised()[5:17])


def test_mxfp4_is_exact() -> None:
    # Given blocks of gpt-oss, their numbers by the specification
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table += [-number for number in table]
    codes = RANDOM.integers(0, 16, (OUT, IN), dtype=np.uint8)
    exponents = RANDOM.integers(100, 140, (OUT, IN // 32), dtype=np.uint8)
    packed = np.array([[row[i] + 16 * row[i + 1] for i in range(0, IN, 2)] for row in codes])
    # When
    matrix = mxfp4.decode(packed.astype(np.uint8), exponents)
    # Then
    powers = 2.0 ** (exponents.astype(int).repeat(32, axis=1) - 127)
    np.testing.assert_array_equal(matrix.dequantised(), np.array(table)[codes] * powers)


def test_mxfp4_of_compressed_tensors(tmp_path: Path) -> None:
    packed = RANDOM.integers(0, 256, (OUT, IN // 2), dtype=np.uint8)
    exponents = RANDOM.integers(100, 140, (OUT, IN // 32), dtype=np.uint8)
    settings = {**CT, "format": "mxfp4-pack-quantized"}
    parts = {"weight_packed": packed, "weight_scale": exponents}
    matrix = opened(tmp_path, settings, parts).quantised[NAME]
    expected = mxfp4.decode(packed, exponents).dequantised()
    np.testing.assert_array_equal(matrix.read(0, 0, OUT).dequantised(), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GPTQ, "bits": 3}, "bits 3 is not supported, only 4 or 8"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({**AWQ, "version": "gemv"}, "version 'gemv'"),
        ({**AWQ, "zero_point": False}, "zero_point False"),
        ({**CT, "format": "marlin-24"}, "format 'marlin-24'"),
        ({**PACKED, "sparsity_config": {"format": "dense"}}, "sparsity_config"),
        ({**FP8, "fmt": "e5m2"}, "fmt 'e5m2'"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        opened(tmp_path, settings, gptq(CODES, SCALES, MIDDLE))


@pytest.mark.parametrize(
    ("settings", "parts", "message"),
    [
        (GPTQ, {**gptq(CODES, SCALES, MIDDLE), "scales": SCALES}, r"scales is float16 \[24, 2\]"),
        ({**GPTQ, "group_size": 16}, gptq(CODES, SCALES, MIDDLE), r"expected .* \[4, 24\]"),
        (
            {**GPTQ, "group_size": 0},
            gptq(CODES, SCALES, MIDDLE),
            "group_size 0, expected an integer from 1",
        ),
        (GPTQ, {"qweight": words_of(CODES, 4).T}, r"lacks .*up_proj\.scales"),
        (
            GPTQ,
            gptq(CODES, SCALES, MIDDLE, g_idx=np.full(IN, 7, np.int32)),
            "g_idx names groups 7 to 7 of 2",
        ),
        ({**GPTQ, "group_size": 10**30}, gptq(CODES, SCALES, MIDDLE), "group_size 10000"),
        (GPTQ, {"weight": CODES}, "no tensor is of that format"),
        (AWQ, {**awq(CODES, SCALES, ZEROS), "qzeros": CODES}, "qzeros is uint8"),
        (INT, {"weight": CODES, "weight_scale": PER_OUTPUT}, "weight is uint8"),
        (PACKED, {**pack_quantized(CODES, SCALES), "weight_shape": [OUT, 99]}, "weight_packed"),
        (
            {**FP8, "weight_block_size": [0, 128]},
            {"weight": TINY, "weight_scale_inv": BLOCKS},
            "weight_block_size",
        ),
        (
            {**FP8, "weight_block_size": [128, 128]},
            {"weight": TINY, "weight_scale_inv": BLOCKS},
            r"weight_scale_inv is float32 \[2, 3\], expected .* \[1, 1\]",
        ),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(
    tmp_path: Path, settings: dict[str, Any], parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, settings, parts)


def test_zero_points_are_checked_against_the_settings(tmp_path: Path) -> None:
    matrix = opened(tmp_path, GPTQ, gptq(CODES, SCALES, ZEROS)).quantised[NAME]
    with pytest.raises(CheckpointError, match="zero points are not 8"):
        matrix.read(0, 0, OUT)


def test_uneven_groups_are_refused(tmp_path: Path) -> None:
    scales = np.ones((OUT, 2), np.float16)
    parts = gptq(CODES, scales, np.full_like(scales, 8, dtype=np.uint8))
    with pytest.raises(UnsupportedModel, match="groups of 40 do not divide its 64 inputs"):
        opened(tmp_path, {**GPTQ, "group_size": 40}, parts)


@pytest.mark.parametrize(
    ("axis", "start", "stop"), [(0, 3, 25), (1, 0, 96), (1, 16, 64), (2, 0, 1)]
)
def test_regions_outside_or_within_groups_are_refused(
    tmp_path: Path, axis: int, start: int, stop: int
) -> None:
    matrix = opened(tmp_path, GPTQ, gptq(CODES, SCALES, MIDDLE)).quantised[NAME]
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        matrix.read(axis, start, stop)


def test_the_digest_is_of_codes_and_scales(tmp_path: Path) -> None:
    # Given two checkpoints that differ in one scale
    other = SCALES.copy()
    other[3, 1] *= 2
    # When / Then
    one = opened(tmp_path / "one", GPTQ, gptq(CODES, SCALES, MIDDLE))
    two = opened(tmp_path / "two", GPTQ, gptq(CODES, other, MIDDLE))
    assert one.digest() != two.digest()


def test_models_on_the_transformers_backend_are_refused(tmp_path: Path) -> None:
    # Given a model_type without a family file
    parts = {PREFIX + part: value for part, value in gptq(CODES, SCALES, MIDDLE).items()}
    directory = write_checkpoint(tmp_path / "model", {"model_type": "olmo3"}, parts, GPTQ)
    # When / Then
    with pytest.raises(UnsupportedModel, match=r"model has quantised weights, .*'olmo3'"):
        open_model(str(directory), tmp_path / "cache")
