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
    VARIED,
    Translator,
    decoder_logits,
    make_translator,
    read,
    translate,
)

LAYER, TWO, STAGE = 1, 2, 99
# 6 heads, 3 layers of an encoder and 2 of a decoder: with two stages one of them has layers of
# both, with five every layer is a stage.
SHAPES = [
    (1, 1, LAYER),
    (1, 1, STAGE),
    (1, 2, STAGE),
    (2, 2, LAYER),
    (2, 2, TWO),
    (2, 3, STAGE),
    (3, 1, TWO),
    (5, 1, STAGE),
    (1, 4, STAGE),
]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart-scaled": ("bart", {"scale_embedding": True, "activation_function": "relu"}),
    "bart-tied": ("bart", {"tie_word_embeddings": True}),
    "bart-other-heads": (
        "bart",
        {"encoder_attention_heads": 4, "decoder_attention_heads": 8, "decoder_ffn_dim": 31},
    ),
    "mbart-scaled": ("mbart", {"scale_embedding": True, "decoder_layers": 4}),
    "mbart-tied": ("mbart", {"tie_word_embeddings": True}),
    "marian-scaled": ("marian", {"scale_embedding": True, "activation_function": "swish"}),
    "marian-tied": ("marian", {"tie_word_embeddings": True}),
    "m2m_100-tied": ("m2m_100", {"tie_word_embeddings": True}),
    "pegasus-tied": ("pegasus", {"tie_word_embeddings": True, "scale_embedding": True}),
    "t5-tied": ("t5", {"own_head": False}),
    "marian-two-vocabularies": (
        "marian",
        {
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 109,
            "pad_token_id": 108,
        },
    ),
    "m2m_100-unscaled": ("m2m_100", {"scale_embedding": False, "encoder_layers": 1}),
    "t5-1.1": (
        "t5",
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1},
    ),
    "t5-gated-silu": ("t5", {"feed_forward_proj": "gated-silu", "d_kv": 7}),
    "t5-many-buckets": (
        "t5",
        {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    ),
    "mt5-relu": ("mt5", {"feed_forward_proj": "relu"}),
}


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


def check(found: Translator, stages: int, shards: int, span: int) -> None:
    """Logits of a decoder that is given its tokens, then all answers side by side."""
    limit = found.checkpoint.arch.vocab_size
    forced = [found.start, *(token % limit for token in FORCED)]
    cluster = cluster_of(found.checkpoint, stages, shards, num_slots=9, slot_tokens=40)
    try:
        read(cluster, TEXTS, span)
        for place, text in enumerate(TEXTS):
            logits = decoder_logits(cluster, place, len(text), forced, span)
            expected = found.logits(text, forced)[2:]
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        # The slots hold what the tokens above left there. Slots in a row are computed in one call.
        answers = translate(cluster, TEXTS, found.start, span, slots=(4, 5, 8, 1, 2))
    finally:
        cluster.close()
    assert answers == [found.answer(text, **VARIED) for text in TEXTS]


@pytest.mark.parametrize(("stages", "shards", "span"), SHAPES)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_family_in_every_shape(
    translator: Callable[..., Translator], family: str, stages: int, shards: int, span: int
) -> None:
    # Given a tiny random model and the answers of Transformers
    found = translator(family)
    # When it runs split / Then logits are close and greedy tokens equal
    check(found, stages, shards, span)


@pytest.mark.parametrize(("stages", "shards", "span"), [(2, 2, LAYER), (1, 3, STAGE)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant(
    translator: Callable[..., Translator], variant: str, stages: int, shards: int, span: int
) -> None:
    # Given a model with a feature that few have
    family, fields = VARIANTS[variant]
    # When it runs split / Then logits are close and greedy tokens equal
    check(translator(family, **fields), stages, shards, span)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_answers_depend_on_the_text(translator: Callable[..., Translator], family: str) -> None:
    # Given the answers of Transformers
    answers = [translator(family).answer(text, **VARIED) for text in TEXTS]
    # Then a wrong memory would show
    assert len({tuple(tokens) for tokens in answers}) == len(TEXTS)
