"""The contract for encoders: the results of Transformers, for any shape and span."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import cluster_of
from model_families import ENCODERS
from references import Encoder, save_random_encoder

from skynet.engine.text_answers import predictions
from skynet.wire.step import Row, TextTask

LAYER, STAGE = 1, 99
SHAPES = [(1, 1, LAYER), (1, 2, STAGE), (2, 2, LAYER), (2, 3, STAGE), (1, 4, STAGE)]
# Lengths of 1 to 40; two that follow each other are equal, and are computed in one call.
TEXTS = [
    [5, 6, 7, 100, 2, 9, 11, 3, 77, 88, 13, 4],
    [9, 8, 130],
    [12, 99, 31],
    [12, 99, 31, 64, 2, 2, 18, 120, 45, 6, 71, 33, 90, 14, 27, 55, 3, 101, 60, 8, 19, 40, 77],
    [44],
    [5 + 3 * place for place in range(40)],
]


def make_encoder(family: str, head: str, directory: Path) -> Encoder:
    """An encoder of the family's sizes in `ENCODERS`, with three labels."""
    return save_random_encoder(family, head, {"num_labels": 3}, directory)


@pytest.fixture(scope="module", params=ENCODERS)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return make_encoder(family, "Model", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def masked(family: str, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return make_encoder(family, "ForMaskedLM", tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def classifier(family: str, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return make_encoder(family, "ForSequenceClassification", tmp_path_factory.mktemp("labels"))


def rows_of(text_task: TextTask) -> list[Row]:
    return [
        Row(slot, 0, tuple(text), len(text), text_task=text_task) for slot, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize(("stages", "shards", "span"), SHAPES)
def test_hidden_states_and_embeddings(base: Encoder, stages: int, shards: int, span: int) -> None:
    # Given the last hidden states of Transformers, each text alone
    expected = [base.hidden_states(text) for text in TEXTS]
    cluster = cluster_of(base.checkpoint, stages, shards)
    pools = {
        "cls": lambda states: states[0],
        "last": lambda states: states[-1],
        "max": lambda states: states.max(axis=0),
        "mean": lambda states: states.mean(axis=0),
    }
    try:
        for pooling, pool in pools.items():
            for normalize in (False, True):
                # When all texts are computed in one step, split
                vectors = cluster.vectors(rows_of(TextTask("embed", pooling, normalize)), span)
                # Then the pooled embeddings are close
                for vector, states in zip(vectors, expected, strict=True):
                    pooled = pool(states)
                    embedding = pooled / np.linalg.norm(pooled) if normalize else pooled
                    np.testing.assert_allclose(vector, embedding, atol=1e-4, rtol=0)
    finally:
        cluster.close()


@pytest.mark.parametrize(("stages", "shards", "span"), SHAPES)
def test_masks_are_filled(masked: Encoder, stages: int, shards: int, span: int) -> None:
    # Given two masked places of a text and one of another
    places = {0: (3, 7), 3: (0,)}
    rows = [
        Row(
            slot,
            0,
            tuple(TEXTS[slot]),
            len(TEXTS[slot]),
            text_task=TextTask("fill-mask", positions=positions_of_text),
        )
        for slot, positions_of_text in places.items()
    ]
    cluster = cluster_of(masked.checkpoint, stages, shards)
    # When the masks are filled, split
    try:
        answers = [predictions(candidates, 5) for candidates in cluster.step(rows, span)]
    finally:
        cluster.close()
    # Then tokens and scores are those of Transformers
    scores = [
        masked.outputs(TEXTS[slot]).logits[0, place].softmax(-1)
        for slot, positions_of_text in places.items()
        for place in positions_of_text
    ]
    assert len(answers) == 3
    for best, expected in zip(answers, scores, strict=True):
        top = expected.topk(5)
        assert [token for token, _ in best] == top.indices.tolist()
        np.testing.assert_allclose([s for _, s in best], top.values.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("stages", "shards", "span"), SHAPES)
def test_texts_are_classified(classifier: Encoder, stages: int, shards: int, span: int) -> None:
    # Given a classifier of three labels
    assert len(classifier.checkpoint.arch.labels) == 3
    cluster = cluster_of(classifier.checkpoint, stages, shards)
    # When texts are classified in one step, split
    try:
        vectors = cluster.vectors(rows_of(TextTask("classify")), span)
    finally:
        cluster.close()
    # Then the logits are those of Transformers
    for logits, text in zip(vectors, TEXTS, strict=True):
        expected = classifier.outputs(text).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_padding_tokens_in_a_text_have_no_position(tmp_path: Path) -> None:
    # Given RoBERTa, and texts with its padding token at either end and inside
    model = save_random_encoder("roberta", "Model", {"pad_token_id": 2}, tmp_path)
    texts = [[5, 6, 2, 2, 7, 2], [2, 2, 9], [2], [8, 2, 7], [5, 6, 7]]
    rows = [
        Row(slot, 0, tuple(text), len(text), text_task=TextTask("embed", "last"))
        for slot, text in enumerate(texts)
    ]
    cluster = cluster_of(model.checkpoint, 2, 2)
    # When they are embedded in one step
    try:
        vectors = cluster.vectors(rows, LAYER)
    finally:
        cluster.close()
    # Then each token has the position that Transformers gives it
    for vector, text in zip(vectors, texts, strict=True):
        np.testing.assert_allclose(vector, model.hidden_states(text)[-1], atol=1e-4, rtol=0)
