"""Pairs of texts: tokens, token types and scores are those of Transformers and of CrossEncoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import Checkpoint, cluster_of
from model_families import ENCODERS, tiny_config
from references import Encoder, save_random_encoder

from skynet.check import check_model
from skynet.engine.text_answers import TextAnswer
from skynet.wire.step import Row, TextTask

LAYER, STAGE = 1, 99
SHAPES = [(1, 1, LAYER), (1, 2, STAGE), (2, 2, LAYER), (2, 3, STAGE)]
# Tokens, and the number of them that are of the first text.
PAIRS = [
    ([5, 6, 7, 100, 2, 9, 11, 3, 77, 88, 13, 4], 7),
    ([9, 8, 130], 1),
    ([12, 99, 31], 2),
    ([12, 99, 31, 64, 2, 2, 18, 120, 45, 6, 71, 33, 90, 14, 27, 55, 3, 101, 60], 4),
]
TYPED = ("bert", "electra", "electra-wide")


def make_cross_encoder(family: str, directory: Path, **fields: Any) -> Encoder:
    """An encoder of one label; of BERT's kin with two token types."""
    types = {"type_vocab_size": 2} if family in TYPED else {}
    fields = {"num_labels": 1} | types | fields
    return save_random_encoder(family, "ForSequenceClassification", fields, directory)


def types_of(family: str, tokens: list[int], first: int) -> tuple[int, ...]:
    return (0,) * first + (1,) * (len(tokens) - first) if family in TYPED else ()


def logits_of(model: Any, tokens: list[int], types: tuple[int, ...]) -> float:
    inputs = {"token_type_ids": torch.tensor([types])} if types else {}
    with torch.no_grad():
        return float(model(torch.tensor([tokens]), **inputs).logits[0, 0])


def scores_of(checkpoint: Checkpoint, rows: list[Row], shape: tuple[int, int, int]) -> list[float]:
    """The answers to the rows of a plan of this shape."""
    stages, shards, span = shape
    cluster = cluster_of(checkpoint, stages, shards)
    try:
        candidates, vectors = cluster.read(rows, span)
    finally:
        cluster.close()
    task = rows[0].text_task
    assert task is not None
    outputs: list[Any] = vectors if task.is_vector else [[each] for each in candidates]
    answer = TextAnswer(task, checkpoint.arch, str)
    return [answer.answer(output)["score"] for output in outputs]


@pytest.mark.parametrize("family", ENCODERS)
def test_pairs_have_the_scores_of_a_cross_encoder(family: str, tmp_path: Path) -> None:
    # Given Transformers' logits, of which CrossEncoder takes the sigmoid
    model = make_cross_encoder(family, tmp_path)
    rows, expected = [], []
    for slot, (tokens, first) in enumerate(PAIRS):
        types = types_of(family, tokens, first)
        expected.append(1 / (1 + np.exp(-logits_of(model.model, tokens, types))))
        task = TextTask("rerank", types=types)
        rows.append(Row(slot, 0, tuple(tokens), len(tokens), text_task=task))
    # When / Then
    for shape in SHAPES:
        np.testing.assert_allclose(
            scores_of(model.checkpoint, rows, shape), expected, atol=1e-5, rtol=0
        )


def test_token_types_of_some_rows(tmp_path: Path) -> None:
    # Given a pair between two single texts in one step
    model = make_cross_encoder("bert", tmp_path)
    (tokens, _), types = PAIRS[0], types_of("bert", *PAIRS[0])
    tasks = [TextTask("rerank"), TextTask("rerank", types=types), TextTask("rerank")]
    rows = [Row(n, 0, tuple(tokens), len(tokens), text_task=t) for n, t in enumerate(tasks)]
    # When
    scores = scores_of(model.checkpoint, rows, (2, 2, LAYER))
    # Then only the pair has them
    plain, typed = (logits_of(model.model, tokens, each) for each in ((), types))
    sigmoids = [1 / (1 + np.exp(-logit)) for logit in (plain, typed, plain)]
    np.testing.assert_allclose(scores, sigmoids, atol=1e-5, rtol=0)
    assert abs(sigmoids[0] - sigmoids[1]) > 1e-3


@pytest.mark.parametrize(
    ("fields", "is_raw"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, False),
    ],
)
def test_the_activation_is_that_of_the_config(
    fields: dict[str, Any], is_raw: bool, tmp_path: Path
) -> None:
    # Given
    model = make_cross_encoder("distilbert", tmp_path, **fields)
    tokens, _ = PAIRS[0]
    row = Row(0, 0, tuple(tokens), len(tokens), text_task=TextTask("rerank"))
    # When
    (score,) = scores_of(model.checkpoint, [row], (1, 1, STAGE))
    # Then
    logit = logits_of(model.model, tokens, ())
    assert score == pytest.approx(logit if is_raw else 1 / (1 + np.exp(-logit)), abs=1e-5)


def save_decoder(
    family: str, auto_class: Any, directory: Path, **fields: Any
) -> tuple[Any, Checkpoint]:
    torch.manual_seed(len(family))
    model = auto_class.from_config(tiny_config(family, **fields)).float().eval()
    model.save_pretrained(directory)
    return model, Checkpoint(directory)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("padding", [None, 4])
def test_decoders_that_classify(family: str, padding: int | None, tmp_path: Path) -> None:
    # Given a decoder converted to a classifier of one label, and texts that end in its padding
    model, checkpoint = save_decoder(
        family,
        transformers.AutoModelForSequenceClassification,
        tmp_path,
        num_labels=1,
        pad_token_id=padding,
    )
    assert checkpoint.arch.tasks == ("embed", "classify")
    texts = [tokens for tokens, _ in PAIRS] + [[9, 8, 4, 4], [4, 4]]
    rows = [
        Row(slot, 0, tuple(text), len(text), text_task=TextTask("rerank"))
        for slot, text in enumerate(texts)
    ]
    # When / Then the last token that is no padding counts
    expected = [1 / (1 + np.exp(-logits_of(model, text, ()))) for text in texts]
    for shape in SHAPES:
        np.testing.assert_allclose(scores_of(checkpoint, rows, shape), expected, atol=1e-5, rtol=0)
    if padding is None:
        assert check_model(str(tmp_path), 2, 2).equal


@pytest.mark.parametrize("family", ["qwen3", "qwen3-tied"])
def test_a_decoder_that_says_yes_or_no(family: str, tmp_path: Path) -> None:
    # Given the logits of two tokens after a text
    yes, no = 77, 12
    model, checkpoint = save_decoder(
        "qwen3",
        transformers.AutoModelForCausalLM,
        tmp_path,
        tie_word_embeddings=family == "qwen3-tied",
    )
    rows, expected = [], []
    for slot, (tokens, _) in enumerate(PAIRS):
        task = TextTask("rerank", positions=(len(tokens) - 1,), top=1, tokens=(yes, no))
        rows.append(Row(slot, 0, tuple(tokens), len(tokens), text_task=task))
        with torch.no_grad():
            last = model(torch.tensor([tokens])).logits[0, -1]
        expected.append(float(torch.stack([last[no], last[yes]]).softmax(0)[1]))
    # When / Then
    for shape in SHAPES:
        np.testing.assert_allclose(scores_of(checkpoint, rows, shape), expected, atol=1e-5, rtol=0)
