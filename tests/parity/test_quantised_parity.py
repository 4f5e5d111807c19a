"""Quantised weights: the logits and tokens of Transformers in float32 over the same weights."""

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
from quantised_models import QuantisedModel
from references import PROMPTS, save_random_encoder, save_random_model
from seq2seq import FORCED, TEXTS, VARIED, Translator, decoder_logits, encode, make_translator
from seq2seq import translate as translate_all
from test_parity import COMPARED

from skynet.wire.step import Row, TextTask

LAYER, STAGE = 1, 99
LIMIT = 5e-4  # of logits: tiny random models, with weights that are rounded, multiply rounding
# 6 query heads in 3 KV groups: 2 shards are uneven (4 + 2), 4 share a KV head.
SHAPES = [(1, 1, STAGE), (2, 2, LAYER), (1, 3, STAGE), (1, 4, STAGE)]
# Columns in whole groups: 3 of 32. The families' own 83 columns stay numbers.
COLUMNS: dict[str, Any] = {"intermediate_size": 96}
N_INNER: dict[str, Any] = {"n_inner": 96}
# Llama with groups of heads; Conv1D; fused projections, of groups of heads too; rope that changes
# the order of outputs; a tied embedding; experts, all of which are chosen; latents; tables of all
# layers.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COLUMNS),
    "llama-tied": ("llama", COLUMNS | {"tie_word_embeddings": True}),
    "llama-odd-columns": ("llama", {}),
    "gpt2": ("gpt2", N_INNER),
    "phi3": ("phi3", COLUMNS),
    "gpt_neox": ("gpt_neox", COLUMNS),
    "gptj": ("gptj", N_INNER),
    "falcon": ("falcon", {"ffn_hidden_size": 96}),
    "gemma2": ("gemma2", COLUMNS | {"head_dim": 16}),
    "gpt_oss": ("gpt_oss", COLUMNS | {"num_experts_per_tok": 5, "head_dim": 16}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "v_head_dim": 16,
            "moe_intermediate_size": 32,
            "num_experts_per_tok": 6,
            "topk_group": 3,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        COLUMNS
        | {
            "moe_intermediate_size": 96,
            "shared_expert_intermediate_size": 96,
            "num_experts_per_tok": 5,
            "linear_value_head_dim": 16,
        },
    ),
    "gemma4": (
        "gemma4_text",
        COLUMNS | {"head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 64},
    ),
    "mixtral": ("mixtral", COLUMNS | {"num_experts_per_tok": 5}),
    # Mamba's heads in groups of 16 inputs; a fused tensor of heads, groups and steps.
    "bamba": ("bamba", COLUMNS),
}


@dataclass(frozen=True)
class Quantised:
    """A model with quantised weights, and what Transformers answers with their numbers."""

    model: QuantisedModel
    logits: list[np.ndarray]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Quantised]:
    """Makes a model of a row of `FAMILIES` with q4 or q8 weights; each once."""
    made: dict[tuple[str, str], Quantised] = {}

    def make(name: str, weights: str) -> Quantised:
        if (name, weights) not in made:
            made[name, weights] = _make(*FAMILIES[name], weights, tmp_path_factory.mktemp("model"))
        return made[name, weights]

    return make


def _make(family: str, fields: dict[str, Any], weights: str, directory: Path) -> Quantised:
    save_random_model(family, fields, directory)
    model = QuantisedModel(directory, weights)
    plain = model.dequantised(directory, directory / "plain")
    reference = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    logits, tokens = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            logits.append(copy.deepcopy(reference)(ids).logits[0, -1].numpy())
            options = {"max_new_tokens": COMPARED, "do_sample": False}
            answer = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
            tokens.append(answer[0, len(prompt) :].tolist())
    return Quantised(model, logits, tokens)


def cluster_of(model: Any, stages: int, shards: int, **options: Any) -> Cluster:
    return Cluster(model, plan_for(model.arch, stages, shards, **options))


@pytest.mark.parametrize(
    ("weights", "stages", "shards", "span"),
    [("q4", *shape) for shape in SHAPES] + [("q8", 2, 2, LAYER)],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantised_model_in_every_shape(
    quantised: Callable[[str, str], Quantised],
    name: str,
    weights: str,
    stages: int,
    shards: int,
    span: int,
) -> None:
    # Given a tiny random model, quantised as it is staged, and Transformers' answers with its
    # numbers
    tiny = quantised(name, weights)
    assert tiny.model.arch.quantisation == weights
    # When it runs split
    cluster = cluster_of(tiny.model, stages, shards)
    try:
        for prompt, expected in zip(PROMPTS, tiny.logits, strict=True):
            logits = last_logits(cluster, tiny.model.arch, prompt, span)
            np.testing.assert_allclose(logits, expected, atol=LIMIT, rtol=0)
        requests = [
            Request(prompt, joins=3 * index, slot=slot)
            for index, (prompt, slot) in enumerate(zip(PROMPTS, (0, 1, 9), strict=True))
        ]
        tokens = generate(cluster, requests, COMPARED, span, chunk=5)
    finally:
        cluster.close()
    # Then logits are close and greedy tokens equal
    assert tokens == tiny.tokens


@pytest.mark.parametrize(
    ("stages", "shards", "span"), [(1, 1, STAGE), (2, 2, LAYER), (1, 3, STAGE)]
)
@pytest.mark.parametrize("weights", ["q4", "q8"])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_quantised_encoder_decoder(
    tmp_path: Path, family: str, weights: str, stages: int, shards: int, span: int
) -> None:
    # Given an encoder-decoder with quantised weights; heads of 16 have groups of 16
    fields = {"d_kv": 16, "d_ff": 96} if family == "t5" else {"encoder_ffn_dim": 96}
    make_translator(family, fields, tmp_path)
    model = QuantisedModel(tmp_path, weights)
    plain = model.dequantised(tmp_path, tmp_path / "plain")
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(plain, dtype=torch.float32)
    reference = Translator(model, loaded, plain)  # type: ignore[arg-type]
    cluster = cluster_of(model, stages, shards, num_slots=9, slot_tokens=40)
    # When it runs split
    try:
        encode(cluster, TEXTS, span)
        forced = [reference.start, *FORCED]
        for place, text in enumerate(TEXTS):
            logits = decoder_logits(cluster, place, len(text), forced, span)
            expected = reference.logits(text, forced)[2:]
            np.testing.assert_allclose(logits, expected, atol=LIMIT, rtol=0)
        answers = translate_all(cluster, TEXTS, reference.start, span, slots=(4, 5, 8, 1, 2))
    finally:
        cluster.close()
    # Then logits are close and greedy tokens equal
    assert answers == [reference.answer(text, **VARIED) for text in TEXTS]


@pytest.mark.parametrize(("stages", "shards"), [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("weights", ["q4", "q8"])
def test_a_quantised_encoder(tmp_path: Path, weights: str, stages: int, shards: int) -> None:
    # Given BERT with quantised weights
    save_random_encoder("bert", "Model", COLUMNS, tmp_path)
    model = QuantisedModel(tmp_path, weights)
    plain = model.dequantised(tmp_path, tmp_path / "plain")
    loaded = transformers.AutoModel.from_pretrained(plain, dtype=torch.float32)
    texts = TEXTS[:3]
    rows = [
        Row(slot, 0, tuple(text), len(text), text_task=TextTask("embed", pooling="mean"))
        for slot, text in enumerate(texts)
    ]
    cluster = cluster_of(model, stages, shards)
    # When it embeds texts
    try:
        vectors = cluster.vectors(rows, STAGE)
    finally:
        cluster.close()
    # Then the vectors are the means of Transformers' hidden states
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = loaded(torch.tensor([text])).last_hidden_state[0]
        expected = states.mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=LIMIT, rtol=0)
