"""Models of sentence-transformers: the vectors of its modules, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import cluster_of
from model_families import ENCODERS, tiny_config
from sentence_models import SentenceCheckpoint, save_modules
from torch import nn

from skynet.check import check_model
from skynet.layers.pooler import pool
from skynet.wire.step import Row, TextTask

LAYER, STAGE = 1, 99
SHAPES = [(1, 1, LAYER), (1, 2, STAGE), (2, 2, LAYER), (2, 3, STAGE)]
TEXTS = [
    [5, 6, 7, 100, 2, 9, 11, 3, 77, 88, 13, 4],
    [9, 8, 130],
    [12, 99, 31],
    [5 + 3 * place for place in range(40)],
]
WIDTH = 48


def dense(inputs: int, outputs: int, activation: nn.Module, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias), activation)


def states_of(model: Any, text: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([text])).last_hidden_state[0]


def check_vectors(
    directory: Path, model: Any, task: TextTask, after: list[nn.Sequential]
) -> SentenceCheckpoint:
    """The vectors of all shapes are those of Transformers, pooled and multiplied."""
    checkpoint, rows, expected = SentenceCheckpoint(directory), [], []
    for slot, text in enumerate(TEXTS):
        rows.append(Row(slot, 0, tuple(text), len(text), text_task=task))
        states = states_of(model, text)
        pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[task.pooling]
        with torch.no_grad():
            for module in after:
                pooled = module(pooled)
        normal = nn.functional.normalize(pooled, dim=0) if task.normalize else pooled
        expected.append(normal.numpy())
    for stages, shards, span in SHAPES:
        cluster = cluster_of(checkpoint, stages, shards)  # type: ignore[arg-type]
        try:
            vectors = cluster.vectors(rows, span)
        finally:
            cluster.close()
        for vector, wanted in zip(vectors, expected, strict=True):
            np.testing.assert_allclose(vector, wanted, atol=1e-4, rtol=0)
    return checkpoint


def test_modules_after_the_pooling(tmp_path: Path) -> None:
    # Given BERT, two modules Dense with an activation each, and Normalize
    torch.manual_seed(1)
    name, kind, sizes = ENCODERS["bert"]
    model = getattr(transformers, f"{name}Model")(kind(**sizes)).eval()
    model.save_pretrained(tmp_path)
    modules = [dense(WIDTH, 70, nn.Tanh()), dense(70, 20, nn.GELU(), bias=False)]
    save_modules(tmp_path, {"pooling_mode_cls_token": True}, modules, True)
    # When / Then
    checkpoint = check_vectors(tmp_path, model, TextTask("embed", "cls", True), modules)
    assert json.loads(checkpoint.files.text_files()["embedding.json"])["pooling"] == "cls"
    # And the rest of the model is compared without them
    assert check_model(str(tmp_path), 1, 2).equal


@pytest.mark.parametrize("window", [6, 7, 40])
def test_a_decoder_whose_tokens_see_later_ones(window: int, tmp_path: Path) -> None:
    # Given EmbeddingGemma, whose windows count half in each direction, with fewer KV heads
    torch.manual_seed(2)
    config = tiny_config("gemma3_text", use_bidirectional_attention=True, sliding_window=window)
    model = transformers.Gemma3TextModel(config).eval()
    model.save_pretrained(tmp_path)
    modules = [
        dense(WIDTH, 96, nn.Identity(), bias=False),
        dense(96, WIDTH, nn.Identity(), bias=False),
    ]
    save_modules(tmp_path, {"pooling_mode_mean_tokens": True}, modules, True)
    # When / Then
    checkpoint = check_vectors(tmp_path, model, TextTask("embed", "mean", True), modules)
    assert checkpoint.arch.tasks == ("embed",)
    if window == 6:
        assert check_model(str(tmp_path), 2, 2).equal


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_of_embeddings(tied: bool, tmp_path: Path) -> None:
    # Given Qwen3-Embedding: the last token, and a file without a head even where it is not tied
    torch.manual_seed(3)
    config = tiny_config("qwen3", tie_word_embeddings=tied)
    model = transformers.Qwen3Model(config).eval()
    model.save_pretrained(tmp_path)
    save_modules(tmp_path, {"pooling_mode": "lasttoken"}, [], True)
    # When / Then
    checkpoint = check_vectors(tmp_path, model, TextTask("embed", "last", True), [])
    assert checkpoint.arch.tasks == (("generate",) if tied else ("embed",))


@pytest.mark.parametrize("skip", [0, 2])
def test_poolings_are_those_of_sentence_transformers(skip: int) -> None:
    # Given hidden states, and the module's sums under a mask without the prompt's tokens
    states = torch.from_numpy(np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32))
    mask = torch.tensor([0.0] * skip + [1.0] * (7 - skip))[:, None]
    numbers = torch.arange(1.0, 8)[:, None]
    total = (states * mask).sum(0)
    expected = {
        "cls": states[0],
        "max": states.masked_fill(mask == 0, -1e9).amax(0),
        "mean": total / mask.sum(),
        "sqrt": total / mask.sum().sqrt(),
        "weighted": (states * mask * numbers).sum(0) / (mask * numbers).sum(),
        "last": states[-1],
    }
    # When / Then
    for pooling, vector in expected.items():
        torch.testing.assert_close(pool(states, pooling, skip), vector)
    joined = torch.cat([expected["cls"], expected["mean"]])
    torch.testing.assert_close(pool(states, "cls+mean", skip), joined)
