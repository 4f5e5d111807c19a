"""Models of other kinds, one after the other on one cluster: Transformers' answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import VOCAB, Tiny, letters, make_tiny, save_tokenizer

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.client.status import cluster_status
from skynet.errors import BadRequest
from skynet.local.cluster import LocalCluster
from skynet.staging.split import skysplit
from skynet.tokenizer.text import Text

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

# Families with one sum a layer; with three, and one more at the end of each span; and three a
# layer on the Transformers backend.
FAMILIES = ["gpt_neox", "olmo2", "glm"]
MASK = 4
TEXTS = [[5, 6, 7, 100, 2, 9], [9, 8, 130], [12, MASK, 31, 64, 2, MASK, 18, 120, 45]]
WHO = ("A cat", "The old gardener", "My bank", "A red bicycle", "The ferry to the island", "She")
WHAT = ("sleeps", "waters the roses", "raised its fees", "was stolen", "leaves at noon", "sings")
WHERE = (
    "",
    " on the sofa",
    " behind the church",
    " without telling anybody, as it had done every year since the war",
    " in Lisbon",
    " because of the storm",
    " again",
)
SENTENCES = [f"{who} {what}{where}." for who, what, where in product(WHO, WHAT, WHERE)]
QUERIES = ["When does the boat go?", "pets at rest", "costs of an account", "theft"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def square(tiny: Tiny) -> Iterator[LocalCluster]:
    """2 stages x 2 shards that take any place; each test splits a model of its own onto them."""
    with LocalCluster(tiny.path, 2, 2, "float32", "layer", num_slots=4, elastic=True) as running:
        yield running


def split(cluster: LocalCluster, model: Path | str, **options: Any) -> None:
    skysplit(str(model), 2, 2, **{"num_slots": 4, **options}, url=cluster.url)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers(
    square: LocalCluster, family: str, tmp_path: Path
) -> None:
    # Given a chord for each layer
    tiny = make_tiny(tmp_path, family)
    split(square, tiny.path, chord_span="layer")
    # When all prompts are answered at once
    generations = [
        square.submit_prompt(prompt, max_tokens=len(tokens))
        for prompt, tokens in zip(tiny.prompts, tiny.tokens, strict=True)
    ]
    answers = [generation.get(timeout=60) for generation in generations]
    # Then they are those of Transformers
    assert [answer.text for answer in answers] == [letters(tokens) for tokens in tiny.tokens]
    # And status and the workers' logs say what runs, if it has no file
    notice = "model_type 'glm' has no file: running Transformers' layers"
    logs = [worker.log.read_text() for worker in square.workers]
    assert sum(notice in log for log in logs) == (4 if family == "glm" else 0)
    events = cluster_status(square.client.redis, square.url)["events"]
    assert any(notice in event["text"] for event in events) == (family == "glm")


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


def test_a_cluster_runs_text_tasks(square: LocalCluster, tmp_path: Path) -> None:
    # Given an encoder on 2 stages x 2 shards
    model = make_bert(tmp_path)
    split(square, tmp_path)
    # When many texts are embedded at once, and the masks of one filled
    texts = [letters(text) for text in TEXTS]
    asked = square.client.submit_prompts(texts * 5, task="embed")
    masked = square.submit_prompt(texts[2], task="fill-mask", top_k=3)
    embedded = [request.get(timeout=60) for request in asked]
    filled = masked.get(timeout=60)
    result = masked.result
    # And by the commands
    printed = [json.loads(line) for line in skynet(square.url, "embed", *texts)]
    lines = skynet(square.url, "fill-mask", texts[2], "--top-k", "1")
    # Then unsupported requests are refused with the reason
    with pytest.raises(BadRequest, match="encoder"):
        square.submit_prompt(texts[0])
    with pytest.raises(BadRequest, match="sequence-classification"):
        square.submit_prompt(texts[0], task="classify")
    with pytest.raises(BadRequest, match="33 tokens"):
        square.submit_prompt([5] * 33, task="embed")
    with pytest.raises(BadRequest, match="no mask"):
        square.submit_prompt(texts[0], task="fill-mask")
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


def reference(checkpoint: Checkpoint, texts: list[str]) -> np.ndarray:
    """(texts, 384): Transformers, each text alone, the mean of its tokens, length 1."""
    text = Text(checkpoint.text_files())
    model = transformers.AutoModel.from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for each in texts:
            states = model(torch.tensor([text.encode(each)])).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy())
    return np.stack(vectors)


@pytest.mark.alone
def test_vectors_and_search(square: LocalCluster, minilm_checkpoint: Checkpoint) -> None:
    # Given a few hundred sentences, some queries, and their vectors by Transformers
    texts = SENTENCES + QUERIES
    assert len(texts) == 256
    expected = reference(minilm_checkpoint, texts)
    # When a cluster of 2 stages x 2 shards embeds all at once
    split(square, "minilm", num_slots=64)
    asked = square.client.submit_prompts(texts, task="embed")
    vectors = np.array([request.get(timeout=200).embedding for request in asked], np.float32)
    # Then all vectors are those of Transformers
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE, rtol=0)
    # And every query finds the sentences in the same order, but for those as near as rounding
    count = len(SENTENCES)
    for vector, query in zip(vectors[count:], expected[count:], strict=True):
        order = np.argsort(-(vectors[:count] @ vector), kind="stable")
        nearness = expected[:count] @ query
        assert order[0] == np.argmax(nearness)
        assert (np.diff(nearness[order]) < TOLERANCE).all()
    # And a search makes sense
    best = [SENTENCES[int(np.argmax(vectors[:count] @ vector))] for vector in vectors[count:]]
    assert "ferry" in best[0]
    assert "cat sleeps" in best[1]
    assert "fees" in best[2]
    assert "stolen" in best[3]
