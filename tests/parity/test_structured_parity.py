"""Structured output over real layers: as Transformers' logits under llguidance's mask."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Reference
from structured import OPTIONS, SHAPES, VOCAB_SIZE, answers, masked_greedy, text_of

from skynet.engine import allowed_tokens
from skynet.engine.modes.generation import Generation
from skynet.request.record import Options
from skynet.request.structured import structured_text

COUNT = 40


@pytest.fixture(scope="session")
def model(reference: Callable[..., Reference]) -> Reference:
    return reference("llama", vocab_size=VOCAB_SIZE, max_position_embeddings=512)


def options_of(**settings: Any) -> list[Options]:
    return [
        Options(max_tokens=COUNT, structured_outputs=structured_text(option), **settings)
        for option in OPTIONS
    ]


def with_limit(monkeypatch: pytest.MonkeyPatch, max_ids: int) -> None:
    """Send masks as ids only up to this many."""
    monkeypatch.setattr(allowed_tokens, "MAX_IDS", max_ids)
    allowed_tokens.allowed_tokens.cache_clear()


@pytest.mark.parametrize("max_ids", [1024, 150, 0])  # allowed ids, forbidden ones too, masks only
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_structured_answers_are_those_of_transformers_under_the_mask(
    model: Reference, shape: tuple[int, int], max_ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    with_limit(monkeypatch, max_ids)
    # When
    found = [tokens for tokens, _ in answers(model, shape, options_of())]
    # Then
    for number, option in enumerate(OPTIONS):
        assert found[number] == masked_greedy(model.path, number, COUNT), option


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 1.5, "top_k": 5},
        {"temperature": 1.2, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.3, "repetition_penalty": 1.3},
    ],
)
def test_sampled_structured_answers_do_not_depend_on_shape_or_form_of_mask(
    model: Reference, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    options = options_of(seed=7, **sampling)
    expected = answers(model, (1, 1), options)
    # When / Then
    for shape, max_ids in [((1, 2), 1024), ((2, 2), 150), ((2, 3), 0)]:
        with_limit(monkeypatch, max_ids)
        assert answers(model, shape, options) == expected


def test_tokens_without_an_alternative_are_the_same_without_a_step(
    model: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the same tokens, appended one by one
    expected = answers(model, (1, 2), options_of())
    monkeypatch.setattr(Generation, "fast_forward", False)
    # When / Then
    assert answers(model, (1, 2), options_of()) == expected
    monkeypatch.undo()
    assert answers(model, (1, 2), options_of(logprobs=2)) == expected


def test_a_finished_structured_answer_is_valid(model: Reference) -> None:
    # Given
    found = answers(model, (1, 2), options_of(temperature=1.0, seed=3))
    # When
    texts = [text_of(tokens) for tokens, _ in found]
    # Then
    ended = [reason for _, reason in found]
    assert ended[3] == ended[4] == "stop"
    assert re.fullmatch(r"[a-zé ]{3,12}\.(jpg|png)", texts[3])
    assert texts[4] in OPTIONS[4]["choice"]
    for number in (0, 1, 2):
        if ended[number] == "stop":
            jsonschema.validate(json.loads(texts[number]), OPTIONS[number].get("json", {}))
        else:
            assert len(found[number][0]) == COUNT


names = st.text('abcdé"\\ ', min_size=1, max_size=4)
leaves = st.one_of(
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-20, 20),
        st.integers(0, 300),
    ),
    st.builds(lambda high: {"type": "string", "maxLength": high}, st.integers(0, 5)),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(names, st.integers(0, 999)), min_size=1, max_size=4),
    ),
    st.builds(
        lambda pattern: {"type": "string", "pattern": pattern},
        st.sampled_from(["^[a-c]{1,3}$", "^x|y$", r"^\d\d-\d\d$"]),
    ),
)


def _object(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:num_required],
        "additionalProperties": False,
    }


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(
            lambda items, low: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + 2,
            },
            inner,
            st.integers(0, 2),
        ),
        st.builds(_object, st.dictionaries(names, inner, max_size=3), st.integers(0, 3)),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(st.tuples(schemas, st.integers(0, 2**32), st.booleans()), min_size=1, max_size=6)
)
def test_answers_by_any_schema_are_valid(
    model: Reference, drawn: list[tuple[dict[str, Any], int, bool]]
) -> None:
    # Given
    options = [
        Options(
            max_tokens=60,
            temperature=1.0,
            seed=seed,
            structured_outputs=structured_text({"json": schema, "whitespace": whitespace}),
        )
        for schema, seed, whitespace in drawn
    ]
    # When
    found = answers(model, (1, 2), options)
    # Then
    for (schema, _, _), (tokens, reason) in zip(drawn, found, strict=True):
        if reason == "stop":
            jsonschema.validate(json.loads(text_of(tokens)), schema)
        else:
            assert len(tokens) == 60
