"""Random configurations of every encoder-decoder, in random shapes: the logits of Transformers."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Cluster, cluster_of, full_logits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_families import ENCODER_DECODERS
from seq2seq import Translator, make_translator

from skynet.wire.step import LogitsRequest, Row

FLAG = [False, True]
ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu"]
SHARED: dict[str, list[Any]] = {
    "activation_function": ACTIVATIONS,
    "scale_embedding": FLAG,
    "tie_word_embeddings": FLAG,
}
PROJECTIONS = [kind + name for kind in ("", "gated-") for name in ACTIVATIONS]
T5: dict[str, list[Any]] = {
    "d_kv": [1, 4, 7, 8],
    "feed_forward_proj": PROJECTIONS,
    "own_head": FLAG,
    "tie_word_embeddings": FLAG,
    "scale_decoder_outputs": [None, *FLAG],
    "relative_attention_num_buckets": [4, 7, 8, 32],
    "relative_attention_max_distance": [17, 20, 128],
    "layer_norm_epsilon": [1e-6, 1e-3],
}
# What may vary besides the sizes, by family.
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "bart": SHARED,
    "m2m_100": SHARED,
    "marian": {**SHARED, "share_encoder_decoder_embeddings": FLAG},
    "mbart": SHARED,
    "mt5": T5,
    "pegasus": SHARED,
    "t5": T5,
}
LEARNED_POSITIONS = ("bart", "mbart")  # of others the hidden states are an even number
# Its padding: how Transformers counts a decoder's other tokens depends on how it is given them.
WITHOUT_POSITION = {"m2m_100": 1}
MAX_TOKENS, SLOTS = 20, 6


@st.composite
def configs(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """The fields of a config of the family, and what `make_translator` takes besides."""
    # Wide ones are cut by multiples.
    width = st.integers(5, 70) | st.just(777)
    heads, layers, vocabulary = st.integers(1, 5), st.integers(1, 3), st.integers(11, 90)
    fields = {name: draw(st.sampled_from(values)) for name, values in OPTIONS[family].items()}
    fields["vocab_size"] = draw(vocabulary | st.just(777))
    if OPTIONS[family] is T5:
        return fields | {
            "d_model": draw(st.integers(3, 40)),
            "d_ff": draw(width),
            "num_heads": draw(heads),
            "num_layers": draw(layers),
            "num_decoder_layers": draw(st.none() | layers),
            # Larger ones make scores that differ by 1e-4 of themselves from those in float64.
            "initializer_factor": 1.0,
        }
    for side in ("encoder", "decoder"):
        fields[f"{side}_attention_heads"] = draw(heads)
        fields[f"{side}_layers"] = draw(layers)
        fields[f"{side}_ffn_dim"] = draw(width)
    both = math.lcm(fields["encoder_attention_heads"], fields["decoder_attention_heads"])
    size = draw(st.integers(1, 6)) * (both if family in LEARNED_POSITIONS else 2 * both)
    fields["d_model"] = max(size, 2 * both)
    if family == "m2m_100":
        fields["d_model"] = max(size, 4 * both)
    if family == "marian":
        shared = fields["share_encoder_decoder_embeddings"]
        fields["decoder_vocab_size"] = fields["vocab_size"] if shared else draw(vocabulary)
        fields["pad_token_id"] = draw(st.integers(0, 10))
    return fields | {"max_position_embeddings": MAX_TOKENS, "init_std": 0.2}


@dataclass(frozen=True)
class Answer:
    """What a decoder is given about a text: a chunk, then one token after the other.

    source: the slot that the chunk is copied from, as beams do; None: it is computed.
    """

    text: int
    slot: int
    tokens: list[int]
    chunk: int
    source: int | None = None


@st.composite
def some_answers(draw: st.DrawFn, token: st.SearchStrategy[int], texts: int) -> list[Answer]:
    """To any texts, in slots that may be neighbours; some go on from the chunk of one before."""
    slots = draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, unique=True))
    answers: list[Answer] = []
    for slot in slots:
        tokens = draw(st.lists(token, min_size=1, max_size=7))
        parents = [answer for answer in answers if answer.source is None]
        parent = draw(st.none() | st.sampled_from(parents)) if parents else None
        if parent is None:
            chunk = draw(st.integers(1, len(tokens)))
            answers.append(Answer(draw(st.integers(0, texts - 1)), slot, tokens, chunk))
        else:
            tokens = [*parent.tokens[: parent.chunk], *tokens]
            answers.append(Answer(parent.text, slot, tokens, parent.chunk, parent.slot))
    return answers


def test_every_encoder_decoder_has_options() -> None:
    # Given a family without any would not be drawn
    assert set(OPTIONS) == set(ENCODER_DECODERS)


@pytest.mark.parametrize("family", OPTIONS)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(data=st.data())
def test_any_encoder_decoder_in_any_shape(family: str, data: st.DataObject) -> None:
    # Given a random model, texts and answers
    fields = data.draw(configs(family), label="config")
    with tempfile.TemporaryDirectory() as directory:
        translator = make_translator(family, fields, Path(directory))
    arch = translator.checkpoint.arch
    token = st.integers(0, arch.stacks[0].vocab_size - 1)
    text = st.lists(token, min_size=1, max_size=6) | st.lists(token, min_size=7, max_size=20)
    texts = data.draw(st.lists(text, min_size=1, max_size=4), label="texts")
    places = data.draw(st.permutations(range(SLOTS)), label="places")[: len(texts)]
    given_token = st.integers(0, arch.vocab_size - 1).filter(
        lambda token: token != WITHOUT_POSITION.get(family)
    )
    answers = data.draw(some_answers(given_token, len(texts)), label="answers")
    # When the texts are encoded in one step, and the answers computed side by side, in any shape
    stages = data.draw(st.integers(1, arch.total_layers), label="stages")
    shards = data.draw(st.integers(1, arch.max_shards), label="shards")
    span = data.draw(st.integers(1, arch.total_layers), label="layers per chord")
    cluster = cluster_of(
        translator.checkpoint, stages, shards, num_slots=SLOTS, slot_tokens=MAX_TOKENS
    )
    try:
        rows = [Row(place, 0, tuple(text), 1) for place, text in zip(places, texts, strict=True)]
        assert cluster.step(rows, span, start=0) == []
        encoder_kvs = [(row.slot, len(row.tokens)) for row in rows]
        logits = decode(cluster, answers, encoder_kvs, span)
    finally:
        cluster.close()
    # Then the logits are the same, as far as float32 goes
    check(translator, texts, answers, logits)


Logits = dict[tuple[int, int], np.ndarray]  # by the number of an answer and the place of a token


def decode(
    cluster: Cluster, answers: list[Answer], encoder_kvs: list[tuple[int, int]], span: int
) -> Logits:
    """First the chunks, then a step for each of the tokens that follow."""
    logits: Logits = {}
    longest = max(len(answer.tokens) - answer.chunk for answer in answers)
    for step in range(longest + 1):
        rows = {}
        for number, answer in enumerate(answers):
            stop = answer.chunk + step
            start = stop - 1 if step else 0
            if stop <= len(answer.tokens) and (step or answer.source is None):
                source = answer.source if step == 1 else None
                tokens, encoder_kv = tuple(answer.tokens[start:stop]), encoder_kvs[answer.text]
                rows[number] = Row(
                    answer.slot,
                    start,
                    tokens,
                    1,
                    LogitsRequest(top=0),
                    source,
                    encoder_kv=encoder_kv,
                )
        results = cluster.step(list(rows.values()), span)
        for (number, row), candidates in zip(rows.items(), results, strict=True):
            logits[number, row.stop - 1] = full_logits(candidates, cluster.arch.vocab_size)
    return logits


def check(model: Translator, texts: list[list[int]], answers: list[Answer], logits: Logits) -> None:
    for number, answer in enumerate(answers):
        expected = model.logits(texts[answer.text], answer.tokens)
        tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
        places = [place for answer_number, place in logits if answer_number == number]
        assert places[-1] == len(answer.tokens) - 1
        for place in places:
            np.testing.assert_allclose(
                logits[number, place], expected[place], atol=tolerance, rtol=0
            )
