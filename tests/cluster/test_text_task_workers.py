"""Text tasks on real workers: embeddings, masked tokens, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import VOCAB, letters, save_tokenizer

from skynet.errors import BadRequest
from skynet.local.cluster import LocalCluster

pytestmark = pytest.mark.cluster

MASK = 4
TEXTS = [[5, 6, 7, 100, 2, 9], [9, 8, 130], [12, MASK, 31, 64, 2, MASK, 18, 120, 45]]


def make_bert(directory: Path) -> transformers.BertForMaskedLM:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=83,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(directory)
    save_tokenizer(directory, mask_token=letters([MASK]))
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 48, "pooling_mode_max_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return model


def skynet(url: str, *words: str) -> list[str]:
    """The lines that a command prints."""
    environment = {**os.environ, "SKYNET_REDIS_URL": url}
    command = [sys.executable, "-m", "skynet.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_cluster_runs_text_tasks(tmp_path: Path) -> None:
    # Given an encoder on 2 stages x 2 shards
    model = make_bert(tmp_path)
    with LocalCluster(tmp_path, 2, 2, "float32", num_slots=4) as running:
        # When many texts are embedded at once, and the masks of one filled
        texts = [letters(text) for text in TEXTS]
        asked = running.client.submit_prompts(texts * 5, task="embed")
        masked = running.submit_prompt(texts[2], task="fill-mask", top_k=3)
        embedded = [request.get(timeout=60) for request in asked]
        filled = masked.get(timeout=60)
        result = masked.result
        # And by the commands
        printed = [json.loads(line) for line in skynet(running.url, "embed", *texts)]
        lines = skynet(running.url, "fill-mask", texts[2], "--top-k", "1")
        # Then unsupported requests are refused with the reason
        with pytest.raises(BadRequest, match="encoder"):
            running.submit_prompt(texts[0])
        with pytest.raises(BadRequest, match="sequence-classification"):
            running.submit_prompt(texts[0], task="classify")
        with pytest.raises(BadRequest, match="33 tokens"):
            running.submit_prompt([5] * 33, task="embed")
        with pytest.raises(BadRequest, match="no mask"):
            running.submit_prompt(texts[0], task="fill-mask")
    # And vectors are pooled as the files beside the model say
    for completion, text in zip(embedded, TEXTS * 5, strict=True):
        with torch.no_grad():
            states = model.bert(torch.tensor([text])).last_hidden_state[0].numpy()
        expected = states.max(axis=0)
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(completion.embedding, expected, atol=1e-4, rtol=0)
    # And both masks get the likeliest tokens of Transformers
    with torch.no_grad():
        scores = model(torch.tensor([TEXTS[2]])).logits[0, [1, 5]].softmax(-1)
    top = scores.topk(3)
    assert [[item["token_id"] for item in mask] for mask in filled.predictions] == (
        top.indices.tolist()
    )
    assert filled.predictions[0][0]["token"] == letters([int(top.indices[0, 0])])
    got = [[item["score"] for item in mask] for mask in filled.predictions]
    np.testing.assert_allclose(got, top.values.numpy(), atol=1e-4, rtol=0)
    # And the commands have printed the same
    assert [item["text"] for item in printed] == texts
    for item, completion in zip(printed, embedded[: len(TEXTS)], strict=True):
        np.testing.assert_allclose(item["embedding"], completion.embedding, atol=1e-5, rtol=0)
    best = [
        f"{float(s):.4f}  {letters([int(t)])}" for s, t in zip(*(x[:, 0] for x in top), strict=True)
    ]
    assert lines == ["mask 1:", best[0], "mask 2:", best[1]]
    # And Celery's result is the same
    assert result["predictions"] == filled.predictions
