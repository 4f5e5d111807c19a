"""The contract for encoder-decoders: the logits and greedy tokens of Transformers, in any shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from harness import cluster_of
from model_families import ENCODER_DECODERS
from seq2seq import (
    FORCED,
    TEXTS,
    VARIANTS,
    VARIED,
    Translator,
    decoder_logits,
    encode,
    make_translator,
    translate,
)

LAYER, TWO, STAGE = 1, 2, 99
# 6 heads, 3 layers of an encoder and 2 of a decoder: with two stages one of them has layers of
# both, with five every layer is a stage.
SHAPES = [(1, 1, STAGE), (2, 2, LAYER), (2, 3, STAGE), (5, 1, STAGE), (1, 4, STAGE)]
# Where a span may end depends on a layer's kind: norms after sums, learned positions; norms before
# sums, a bias of the scores.
KINDS = ("bart", "t5")
MORE_SHAPES = [(1, 1, LAYER), (1, 2, STAGE), (2, 2, TWO), (3, 1, TWO)]


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Translator]:
    """Makes the model of a family and the config fields that differ; each once."""
    made: dict[str, Translator] = {}

    def make(family: str, **fields: Any) -> Translator:
        key = f"{family} {fields}"
        if key not in made:
            made[key] = make_translator(family, fields, tmp_path_factory.mktemp(family))
        return made[key]

    return make


def check(tiny_translator: Translator, stages: int, shards: int, span: int) -> None:
    """Logits of a decoder that is given its tokens, then all answers side by side."""
    limit = tiny_translator.checkpoint.arch.vocab_size
    forced = [tiny_translator.start, *(token % limit for token in FORCED)]
    cluster = cluster_of(tiny_translator.checkpoint, stages, shards, num_slots=9, slot_tokens=40)
    try:
        encode(cluster, TEXTS, span)
        for place, text in enumerate(TEXTS):
            logits = decoder_logits(cluster, place, len(text), forced, span)
            expected = tiny_translator.logits(text, forced)[2:]
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        # The slots hold what the tokens above left there. Slots in a row are computed in one call.
        answers = translate(cluster, TEXTS, tiny_translator.start, span, slots=(4, 5, 8, 1, 2))
    finally:
        cluster.close()
    assert answers == [tiny_translator.answer(text, **VARIED) for text in TEXTS]


@pytest.mark.parametrize(
    ("family", "stages", "shards", "span"),
    [
        (family, *shape)
        for family in ENCODER_DECODERS
        for shape in SHAPES + (MORE_SHAPES if family in KINDS else [])
    ],
)
def test_a_family_in_every_shape(
    translator: Callable[..., Translator], family: str, stages: int, shards: int, span: int
) -> None:
    # Given a tiny random model and the answers of Transformers
    tiny_translator = translator(family)
    # When it runs split / Then logits are close and greedy tokens equal
    check(tiny_translator, stages, shards, span)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant(translator: Callable[..., Translator], variant: str) -> None:
    # Given a model with a feature that few have
    family, fields = VARIANTS[variant]
    # When it runs split / Then logits are close and greedy tokens equal
    check(translator(family, **fields), 2, 3, LAYER)


@pytest.mark.parametrize(("stages", "shards"), [(1, 1), (3, 2)])
def test_the_padding_of_m2m_has_no_position(
    translator: Callable[..., Translator], stages: int, shards: int
) -> None:
    # Given some in a text and in its answer, and what Transformers makes of it token by token
    tiny_translator, text, tokens = (
        translator("m2m_100"),
        [9, 1, 8, 1, 1, 123, 4],
        [1, 33, 20, 1, 1, 9],
    )
    answer = tiny_translator.generate(
        text,
        max_new_tokens=len(tokens) + 1,
        prefix_allowed_tokens_fn=lambda _, given: [[*tokens, 5][len(given) - 1]],
        return_dict_in_generate=True,
        output_logits=True,
    )
    expected = [logits[0].numpy() for logits in answer.logits]
    # When it runs split, the first tokens of the answer as a chunk
    cluster = cluster_of(tiny_translator.checkpoint, stages, shards, num_slots=6, slot_tokens=40)
    try:
        encode(cluster, [text], LAYER)
        logits = decoder_logits(cluster, 0, len(text), [tiny_translator.start, *tokens], LAYER)
    finally:
        cluster.close()
    # Then the others count on, in the answer with it and in the text without
    np.testing.assert_allclose(logits, expected[2:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_answers_depend_on_the_text(translator: Callable[..., Translator], family: str) -> None:
    # Given the answers of Transformers
    answers = [translator(family).answer(text, **VARIED) for text in TEXTS]
    # Then they differ, so that the wrong encoder KV would show
    assert len({tuple(tokens) for tokens in answers}) == len(TEXTS)
