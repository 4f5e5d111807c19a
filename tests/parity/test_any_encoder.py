"""Random configurations of every encoder, in random shapes: text tasks against Transformers."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import cluster_of, full_logits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_families import ENCODER_HEADS, ENCODERS
from references import Encoder, save_random_encoder
from transformers import TextClassificationPipeline

from skynet.architecture.architecture import Architecture
from skynet.engine.text_answers import TextAnswer
from skynet.request.task_names import CLASSIFY, EMBED, FILL_MASK, POOLINGS
from skynet.wire.step import Row, TextTask

ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu"]
BERT: dict[str, list[Any]] = {
    "hidden_act": ACTIVATIONS,
    "type_vocab_size": [1, 2, 3],
    "layer_norm_eps": [1e-12, 1e-5],
}
FLAG = [False, True]
FULL, SLIDING = "full_attention", "sliding_attention"
ROPES = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 70.0, "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
]
# What may vary besides the sizes, by family.
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "bert": BERT,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), BERT | {"pad_token_id": [0, 1, 5]}),
    "distilbert": {"activation": ACTIVATIONS, "sinusoidal_pos_embds": FLAG},
    "electra": {**BERT, "embedding_size": [1, 7, 24, 70]},
    "deberta-v2": {
        "hidden_act": ACTIVATIONS,
        "pooler_hidden_act": ACTIVATIONS,
        "norm_rel_ebd": ["none", "layer_norm"],
        "pos_att_type": [None, ["c2p"], "p2c", "c2p|p2c"],
        "position_biased_input": FLAG,
        "position_buckets": [-1, 4, 5, 16],
        "max_relative_positions": [-1, 17, 40],
        "relative_attention": [True],
        "share_att_key": [True],
        "type_vocab_size": [0, 2],
    },
    "mpnet": {name: values for name, values in BERT.items() if name != "type_vocab_size"},
    "nomic_bert": {**BERT, "pad_token_id": [0], "rope_parameters": [None, *ROPES]},
    "modernbert": {
        "hidden_activation": ACTIVATIONS,
        "classifier_activation": ACTIVATIONS,
        "classifier_pooling": ["cls", "mean"],
        "local_attention": [1, 2, 5, 8, 100],
        "norm_eps": [1e-5, 1e-3],
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), FLAG),
        **dict.fromkeys(("decoder_bias", "classifier_bias"), FLAG),
        "rope_parameters": [
            None,
            *({FULL: one, SLIDING: other} for one, other in itertools.permutations(ROPES, 2)),
        ],
    },
}
ROTATED = ("modernbert", "nomic_bert")
# Of the sizes, where the family has other names than BERT.
NAMES = {
    "distilbert": {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "hidden_dim",
    }
}
PROBLEMS = [None, "regression", "multi_label_classification"]
ONE_OF_SEVERAL = "single_label_classification"
MAX_TOKENS = 20
MAX_OFFSET = 6  # of RoBERTa's positions, which come on top


@st.composite
def configs(draw: st.DrawFn, family: str, head: str) -> dict[str, Any]:
    """The fields of a config of the family with this head."""
    # Rope turns pairs of numbers.
    head_dim = draw(st.sampled_from([4, 6, 10] if family in ROTATED else [4, 5, 7, 8]))
    heads, layers = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    fields: dict[str, Any] = {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        # Wide ones are cut by multiples.
        "intermediate_size": draw(st.integers(5, 70) | st.just(777)),
        "vocab_size": draw(st.integers(11, 90) | st.just(777)),
        "max_position_embeddings": MAX_TOKENS + MAX_OFFSET,
        "initializer_range": 0.2,
        "tie_word_embeddings": draw(st.booleans()),
    }
    names = NAMES.get(family, {})
    fields = {names.get(name, name): value for name, value in fields.items()}
    for name, values in OPTIONS[family].items():
        fields[name] = draw(st.sampled_from(values))
    if family == "modernbert":
        kinds = st.sampled_from([FULL, SLIDING])
        fields["layer_types"] = draw(st.none() | st.lists(kinds, min_size=layers, max_size=layers))
    if head == "ForSequenceClassification":
        labels = draw(st.lists(st.text("ABC -", min_size=1), min_size=1, max_size=5, unique=True))
        fields["id2label"] = dict(enumerate(labels))
        problems = [*PROBLEMS, ONE_OF_SEVERAL] if len(labels) > 1 else PROBLEMS
        fields["problem_type"] = draw(st.sampled_from(problems))
    return fields


def test_every_encoder_has_options() -> None:
    # Given a family without any would not be drawn
    assert set(OPTIONS) == {kind.model_type for _, kind, _ in ENCODERS.values()}


@pytest.mark.parametrize("head", ENCODER_HEADS)
@pytest.mark.parametrize("family", OPTIONS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(data=st.data())
def test_any_encoder_in_any_shape(family: str, head: str, data: st.DataObject) -> None:
    # Given a random encoder and texts of any length, each with a random text task
    fields = data.draw(configs(family, head), label="config")
    with tempfile.TemporaryDirectory() as directory:
        encoder = save_random_encoder(family, head, fields, Path(directory))
    arch = encoder.checkpoint.arch
    texts = data.draw(some_texts(arch.vocab_size), label="texts")
    rows = [
        Row(slot, 0, tuple(text), len(text), text_task=data.draw(text_tasks(arch, len(text))))
        for slot, text in enumerate(texts)
    ]
    # When the tasks run in one step, in any shape
    stages = data.draw(st.integers(1, arch.num_layers), label="stages")
    shards = data.draw(st.integers(1, arch.num_heads), label="shards")
    span = data.draw(st.integers(1, arch.num_layers), label="layers per chord")
    cluster = cluster_of(encoder.checkpoint, stages, shards, num_slots=5, slot_tokens=MAX_TOKENS)
    try:
        candidates, vectors = (iter(results) for results in cluster.read(rows, span))
    finally:
        cluster.close()
    # Then the results are the same, within float32
    for row in rows:
        if row.text_task.is_vector:
            result = next(vectors)
        else:
            by_position = [next(candidates) for _ in row.text_task.positions]
            result = np.stack([full_logits(parts, arch.vocab_size) for parts in by_position])
        expected = expectation(encoder, row)
        tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(result, expected, atol=tolerance, rtol=0)
        if row.text_task.task == CLASSIFY:
            check_scores(encoder, result)
    assert next(candidates, None) is next(vectors, None) is None


@st.composite
def some_texts(draw: st.DrawFn, vocab_size: int) -> list[list[int]]:
    """Of few different lengths: those that are equal are computed together."""
    any_length = st.integers(1, 6) | st.integers(7, MAX_TOKENS)
    lengths = draw(st.lists(any_length, min_size=1, max_size=3))
    token = st.integers(0, vocab_size - 1)
    chosen = draw(st.lists(st.sampled_from(lengths), min_size=1, max_size=5))
    return [draw(st.lists(token, min_size=length, max_size=length)) for length in chosen]


@st.composite
def text_tasks(draw: st.DrawFn, arch: Architecture, length: int) -> TextTask:
    """A text task for a text of this length, with token types if there are any; fill-mask asks for
    all logits."""
    task, kind = draw(st.sampled_from(arch.tasks)), st.integers(0, max(0, arch.token_types - 1))
    some_types = st.just([]) | st.lists(kind, min_size=length, max_size=length)
    types = tuple(draw(some_types)) if arch.token_types else ()
    if task == EMBED:
        pooling = "+".join(draw(st.lists(st.sampled_from(POOLINGS), min_size=1, max_size=2)))
        return TextTask(task, pooling, draw(st.booleans()), types=types)
    if task == FILL_MASK:
        places = st.lists(st.integers(0, length - 1), min_size=1, unique=True)
        return TextTask(task, positions=tuple(draw(places)), top=0, types=types)
    return TextTask(task, types=types)


def expectation(encoder: Encoder, row: Row) -> np.ndarray:
    """The same of Transformers."""
    text, text_task = list(row.tokens), row.text_task
    if text_task.task == EMBED:
        return pooled(encoder.hidden_states(text, text_task.types), text_task)
    logits = encoder.outputs(text, text_task.types).logits[0].numpy()
    return logits[list(text_task.positions)] if text_task.task == FILL_MASK else logits


def pooled(states: np.ndarray, text_task: TextTask) -> np.ndarray:
    """As sentence-transformers pools them."""
    numbers = np.arange(1, len(states) + 1)
    vectors = {
        "cls": states[0],
        "last": states[-1],
        "max": states.max(axis=0),
        "mean": states.mean(axis=0),
        "sqrt": states.sum(axis=0) / len(states) ** 0.5,
        "weighted": (states * numbers[:, None]).sum(axis=0) / numbers.sum(),
    }
    vector = np.concatenate([vectors[pooling] for pooling in text_task.pooling.split("+")])
    return vector / np.linalg.norm(vector) if text_task.normalize else vector


def check_scores(encoder: Encoder, logits: np.ndarray) -> None:
    """Labels and their scores are those of Transformers' pipeline for these logits."""
    pipeline = TextClassificationPipeline.__new__(TextClassificationPipeline)
    pipeline.model = encoder.model
    made = pipeline.postprocess({"logits": torch.tensor(logits)[None]}, top_k=None)
    expected = {item["label"]: item["score"] for item in made}
    answer = TextAnswer(TextTask(CLASSIFY), encoder.checkpoint.arch, str).answer(logits)["labels"]
    scores = {item["label"]: item["score"] for item in answer}
    assert scores.keys() == expected.keys()
    for label, score in expected.items():
        np.testing.assert_allclose(scores[label], score, atol=1e-6, rtol=1e-6)
