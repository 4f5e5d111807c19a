"""Quantised checkpoints as they are published: Transformers' answers with their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import Cluster, Request, generate, last_logits
from plans import plan_for
from quantised_models import QuantisedModel
from references import NEW_TOKENS, PROMPTS, save_random_model

from skynet.check import check_model
from skynet.checkpoint.checkpoint import Checkpoint, open_checkpoint
from skynet.checkpoint.unpacked import unpacked_directory
from tests.gguf_files import transformers_model, write_random_gguf
from tests.published_formats import awq, gptq, pack_quantized, write_checkpoint

LIMIT = 1e-3  # of logits
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GROUP = 32
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
INT8 = {"quant_method": "compressed-tensors", "format": "int-quantized"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def of_gguf(kind: str, **others: str) -> Callable[[Path], Checkpoint]:
    def make(directory: Path) -> Checkpoint:
        directory.mkdir()
        write_random_gguf(directory / "tiny.gguf", "llama", kind, head="Q6_K", others=others)
        return open_checkpoint(str(directory / "tiny.gguf"), directory / "cache")

    return make


def of_llama(
    settings: dict[str, Any], parts_of: Callable[[np.ndarray], dict[str, Any]]
) -> Callable[[Path], Checkpoint]:
    """A random Llama whose projections are made of random codes by `parts_of`."""

    def make(directory: Path) -> Checkpoint:
        model, _ = save_random_model("llama", SIZES, directory)
        random, tensors = np.random.default_rng(1), dict[str, Any]()
        for name, value in model.state_dict().items():
            if "_proj." in name:
                codes = random.integers(0, 16, tuple(value.shape), dtype=np.uint8)
                prefix = name.removesuffix("weight")
                tensors |= {prefix + part: array for part, array in parts_of(codes).items()}
            else:
                tensors[name] = value
        config = json.loads((directory / "config.json").read_text())
        write_checkpoint(directory, config, tensors, settings)
        return Checkpoint(directory, "tiny", directory / "cache")

    return make


def scales(codes: np.ndarray, groups: int | None = None) -> np.ndarray:
    shape = (len(codes), codes.shape[1] // GROUP if groups is None else groups)
    return np.random.default_rng(2).uniform(0.01, 0.04, shape).astype(np.float16)


def zeros(codes: np.ndarray) -> np.ndarray:
    return np.random.default_rng(3).integers(6, 10, scales(codes).shape, dtype=np.uint8)


def int8(codes: np.ndarray) -> dict[str, Any]:
    return {
        "weight": codes.astype(np.int8) * 16 - 120,
        "weight_scale": (scales(codes, 1) / 16).astype(np.float32),
    }


def fp8(codes: np.ndarray) -> dict[str, Any]:
    blocks = [-(-size // 128) for size in codes.shape]
    return {
        "weight": torch.from_numpy(codes.astype(np.float32) - 7.5).to(torch.float8_e4m3fn),
        "weight_scale_inv": np.full(blocks, 0.02, np.float32),
    }


def of_gpt_oss(directory: Path) -> Checkpoint:
    """A random gpt-oss whose experts are random blocks."""
    fields = {"hidden_size": 64, "intermediate_size": 96}
    model, _ = save_random_model("gpt_oss", fields, directory)
    random, tensors = np.random.default_rng(1), dict[str, Any]()
    for name, value in model.state_dict().items():
        if name.endswith("_proj") and value.ndim == 3:
            experts, inputs, outputs = value.shape
            shape = (experts, outputs, inputs // 32)
            tensors[f"{name}_blocks"] = random.integers(0, 256, (*shape, 16), np.uint8)
            tensors[f"{name}_scales"] = random.integers(121, 126, shape, np.uint8)
        else:
            tensors[name] = value
    config = json.loads((directory / "config.json").read_text())
    write_checkpoint(directory, config, tensors, {"quant_method": "mxfp4"})
    return Checkpoint(directory, "tiny", directory / "cache")


CASES: dict[str, Callable[[Path], Checkpoint]] = {
    "Q4_0": of_gguf("Q4_0"),
    "Q4_K_M": of_gguf("Q4_K", attn_v="Q6_K", ffn_down="Q6_K", token_embd="Q8_0"),
    "Q8_0": of_gguf("Q8_0", attn_k="F16"),
    "Q2_K": of_gguf("Q2_K", attn_v="Q3_K"),
    "gptq": of_llama(GPTQ, lambda codes: gptq(codes, scales(codes), zeros(codes))),
    "awq": of_llama(AWQ, lambda codes: awq(codes, scales(codes), zeros(codes))),
    "int4": of_llama(PACKED, lambda codes: pack_quantized(codes, scales(codes))),
    "int8": of_llama(INT8, int8),
    "fp8": of_llama(FP8, fp8),
    "mxfp4 experts": of_gpt_oss,
}


@dataclass(frozen=True)
class Published:
    """A checkpoint, and the answers of Transformers in float32 with the numbers of its codes."""

    model: QuantisedModel
    logits: list[np.ndarray]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Published]:
    made: dict[str, Published] = {}

    def make(case: str) -> Published:
        if case not in made:
            directory = tmp_path_factory.mktemp("published")
            checkpoint = CASES[case](directory / "model")
            unpacked = unpacked_directory(checkpoint, directory / "cache")
            reference = transformers.AutoModelForCausalLM.from_pretrained(
                unpacked, dtype=torch.float32
            )
            made[case] = Published(
                QuantisedModel(checkpoint.path, None, source=checkpoint), *answers(reference)
            )
        return made[case]

    return make


def answers(reference: Any) -> tuple[list[np.ndarray], list[list[int]]]:
    logits, tokens = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            logits.append(reference(ids).logits[0, -1].numpy())
            options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
            answer = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
            tokens.append(answer[0, len(prompt) :].tolist())
    return logits, tokens


@pytest.mark.parametrize(("stages", "shards", "span"), [(1, 1, 99), (1, 2, 99), (2, 2, 1)])
@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_unpacked_weights(
    published: Callable[[str], Published], case: str, stages: int, shards: int, span: int
) -> None:
    # Given a checkpoint whose matrices are staged in the file's form
    tiny = published(case)
    assert tiny.model.formats
    # When it runs split
    cluster = Cluster(tiny.model, plan_for(tiny.model.arch, stages, shards))
    try:
        for prompt, expected in zip(PROMPTS, tiny.logits, strict=True):
            logits = last_logits(cluster, tiny.model.arch, prompt, span)
            np.testing.assert_allclose(logits, expected, atol=LIMIT, rtol=0)
        requests = [
            Request(prompt, joins=3 * index, slot=index) for index, prompt in enumerate(PROMPTS)
        ]
        tokens = generate(cluster, requests, NEW_TOKENS, span, chunk=5)
    finally:
        cluster.close()
    # Then logits are close and greedy tokens equal
    assert tokens == tiny.tokens


@pytest.mark.parametrize("case", ["gptq", "Q4_K_M", "mxfp4 experts"])
def test_check_compares_quantised_weights(published: Callable[[str], Published], case: str) -> None:
    report = check_model(str(published(case).model.source.original.path), 1, 2)
    assert report.equal, report.places


def test_mxfp4_experts_have_the_numbers_that_transformers_unpacks(
    published: Callable[[str], Published],
) -> None:
    # Given all experts of a layer, as Transformers unpacks them
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    checkpoint = published("mxfp4 experts").model.source.original
    name = "model.layers.1.mlp.experts.gate_up_proj"
    parts = [
        torch.from_numpy(checkpoint.read_whole(f"{name}_{part}")) for part in ("blocks", "scales")
    ]
    unpacked = convert_moe_packed_tensors(*parts, dtype=torch.float32)
    # Then these are the numbers, in the same axes
    np.testing.assert_array_equal(checkpoint.read_whole(name), unpacked.numpy())


def test_answers_of_a_gguf_file_are_those_of_transformers(
    published: Callable[[str], Published],
) -> None:
    # Given the same file, unpacked by Transformers itself
    tiny = published("Q4_K_M")
    file = tiny.model.source.original.path.parents[2] / "tiny.gguf"
    logits, tokens = answers(transformers_model(file))
    # Then
    assert tokens == tiny.tokens
    np.testing.assert_allclose(np.array(logits), np.array(tiny.logits), atol=1e-5)
