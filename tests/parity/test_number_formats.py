"""Checkpoints in float16 and float32: kept so, with Transformers' logits and tokens in float32."""

from __future__ import annotations

import copy
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
from quantised_models import SINGLE, QuantisedModel
from references import NEW_TOKENS, PROMPTS, save_random_model
from safetensors.torch import load_file, save_file

from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.planning.memory import shard_weight_bytes
from skynet.staging.split import narrowest
from tests.gguf_files import transformers_model, write_random_gguf

LAYER, STAGE = 1, 99
LIMIT = 1e-4  # of logits
SHAPES = [(1, 1, STAGE), (1, 2, STAGE), (2, 2, LAYER), (1, 4, STAGE)]


def of_family(family: str, dtype: torch.dtype, **fields: Any) -> Callable[[Path], QuantisedModel]:
    """A random model with matrices of `dtype`; norms and biases are float32."""

    def make(directory: Path) -> QuantisedModel:
        save_random_model(family, fields, directory)
        tensors = load_file(directory / SINGLE)
        stored = {name: each.to(dtype) if each.ndim > 1 else each for name, each in tensors.items()}
        save_file(stored, directory / SINGLE, metadata={"format": "pt"})
        return QuantisedModel(directory, None)

    return make


def of_gguf(directory: Path) -> QuantisedModel:
    file = directory / "tiny.gguf"
    write_random_gguf(file, "llama", "F16", head="F16")
    checkpoint = open_checkpoint(str(file), directory / "cache")
    return QuantisedModel(directory, None, source=checkpoint)


# A tied embedding; a table of positions, and matrices that are stored transposed.
CASES = {
    "llama float16": ("float16", of_family("llama", torch.float16, tie_word_embeddings=True)),
    "gpt2 float16": ("float16", of_family("gpt2", torch.float16)),
    "GGUF F16": ("float16", of_gguf),
    "llama float32": ("float32", of_family("llama", torch.float32)),
}


@dataclass(frozen=True)
class Stored:
    """A checkpoint, the dtype of its matrices, and Transformers' answers in float32."""

    model: QuantisedModel
    dtype: str
    logits: list[np.ndarray]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stored]:
    made: dict[str, Stored] = {}

    def make(name: str) -> Stored:
        if name not in made:
            made[name] = _make(name, tmp_path_factory.mktemp("model"))
        return made[name]

    return make


def _make(name: str, directory: Path) -> Stored:
    dtype, make = CASES[name]
    model = make(directory)
    if name.startswith("GGUF"):
        reference = transformers_model(directory / "tiny.gguf")
    else:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        reference = loaded
    logits, tokens = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            logits.append(copy.deepcopy(reference)(ids).logits[0, -1].numpy())
            options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
            answer = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
            tokens.append(answer[0, len(prompt) :].tolist())
    return Stored(model, dtype, logits, tokens)


@pytest.mark.parametrize(("stages", "shards", "span"), SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_kept_and_answers_are_those_of_float32(
    stored: Callable[[str], Stored], name: str, stages: int, shards: int, span: int
) -> None:
    # Given a checkpoint, in the plan that a split makes of it
    tiny = stored(name)
    model, arch = tiny.model, tiny.model.arch
    dtype = narrowest(model.plans, arch, "float32")
    assert dtype == tiny.dtype
    plan = plan_for(arch, stages, shards, weight_dtype=dtype)
    # When it runs split
    cluster = Cluster(model, plan)
    try:
        for prompt, expected in zip(PROMPTS, tiny.logits, strict=True):
            logits = last_logits(cluster, arch, prompt, span)
            np.testing.assert_allclose(logits, expected, atol=LIMIT, rtol=0)
        requests = [
            Request(prompt, joins=3 * index, slot=slot)
            for index, (prompt, slot) in enumerate(zip(PROMPTS, (0, 1, 9), strict=True))
        ]
        tokens = generate(cluster, requests, NEW_TOKENS, span, chunk=5)
        sizes = {
            (stage, shard): cluster.models[stage][shard].weight_bytes
            for stage in range(stages)
            for shard in range(shards)
        }
    finally:
        cluster.close()
    # Then logits are close, greedy tokens equal, and memory is that of the plan's dtypes
    assert tokens == tiny.tokens
    assert sizes == {at: shard_weight_bytes(arch, plan, *at) for at in sizes}
