"""Bodies become engine options; what is not supported is refused by name, the rest is ignored."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from skynet.gateway.errors import ApiError, invalid_body
from skynet.gateway.logprobs import LegacyLogprobs
from skynet.gateway.routes.models import DetokenizeBody
from skynet.gateway.schemas.body import REFUSED, ignored_header
from skynet.gateway.schemas.chat import ChatBody
from skynet.gateway.schemas.completion import CompletionBody
from skynet.gateway.schemas.generation import PASSED
from skynet.gateway.schemas.text_tasks import EmbeddingBody, ScoreBody

MESSAGES = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": MESSAGES, **fields})


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"do_sample": True}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1e-6}, {"temperature": 0.0}),
        ({"temperature": 0.5, "top_p": 0.9}, {"do_sample": True, "temperature": 0.5, "top_p": 0.9}),
        ({"top_p": 0}, {"do_sample": True, "top_p": 1e-9}),
        ({"top_k": -1}, {"do_sample": True, "top_k": 0}),
        ({"temperature": 0, "seed": -1}, {"temperature": 0.0, "seed": 2**64 - 1}),
        ({"temperature": 0, "stop": "x"}, {"temperature": 0.0, "stop": ["x"]}),
        ({"temperature": 0, "stop": None}, {"temperature": 0.0}),
        ({"temperature": 0, "min_tokens": 3}, {"temperature": 0.0, "min_new_tokens": 3}),
        ({"temperature": 0, "priority": 9}, {"temperature": 0.0, "priority": 9}),
        ({"temperature": 0, "service_tier": "flex"}, {"temperature": 0.0, "priority": 1}),
        ({"temperature": 0, "service_tier": "auto"}, {"temperature": 0.0}),
        ({"temperature": 0, "ignore_eos": True}, {"temperature": 0.0, "ignore_eos": True}),
        (
            {"temperature": 0, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
        ),
        ({"num_beams": 4}, {"num_beams": 4}),
    ],
)
def test_fields_are_engine_options(fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert chat(**fields).options() == options


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_change_the_answer_is_refused_by_name(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**{name: {"a": 1}}).ignored(PASSED)
    assert (caught.value.status, caught.value.param) == (400, name)
    assert chat(**{name: None}).ignored(PASSED) == []


def test_values_without_effect_are_taken() -> None:
    assert chat(best_of=1, functions=[], guided_json="").ignored(PASSED) == []
    body = chat(stream=True, stream_options={"include_usage": None})
    assert body.stream_options is not None
    assert body.stream_options.include_usage is False


def test_other_unknown_fields_are_ignored_and_named() -> None:
    # Given
    body = chat(user="ann", store=True, metadata={}, foo=1, **{"new\nline": 1})
    # When / Then
    assert body.ignored(PASSED) == ["foo", "new\nline"]
    assert ignored_header(body.ignored(PASSED)) == {"x-skynet-ignored": "foo, new?line"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": []}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"echo": True}, "echo"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"stream": True, "num_beams": 2}, "num_beams"),
    ],
)
def test_fields_that_contradict_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_all_of(chat(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)


def read_all_of(body: ChatBody) -> None:
    body.options()
    body.top()
    body.structure()


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}},
            {"json": {"a": 1}},
        ),
        ({"response_format": {"type": "json_schema", "schema": {"a": 1}}}, {"json": {"a": 1}}),
        ({"response_format": {"type": "json_object", "schema": {"a": 1}}}, {"json": {"a": 1}}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
    ],
)
def test_a_response_format_is_a_grammar(fields: dict[str, Any], structure: Any) -> None:
    assert chat(**fields).structure() == structure


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_completions_prompt_has_four_forms(prompt: Any, prompts: Any) -> None:
    assert CompletionBody.model_validate({"prompt": prompt}).prompts() == prompts


def test_a_completion_has_openais_default_length() -> None:
    assert CompletionBody.model_validate({"prompt": "a"}).limit == 16
    assert chat().limit is None
    assert chat(max_tokens=5, max_completion_tokens=7).limit == 7


def test_a_hostile_body_does_not_come_back_in_its_error() -> None:
    # Given
    body = {"messages": [{"role": "x"}] * 3, "temperature": "y" * 100_000, "n": [1] * 10_000}
    # When
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({**body, "stop": [[1]] * 5000})
    problems = [{**each, "loc": ("body", *each["loc"])} for each in caught.value.errors()]
    # Then
    assert len(invalid_body(problems).message) < 10_000


def test_equal_numbers_say_that_a_token_was_the_likeliest() -> None:
    # Given
    legacy = LegacyLogprobs(lambda token: "same" if token < 3 else f"t{token}")
    # When
    legacy.add(7, None)
    legacy.add(2, -0.5, [(1, -0.25), (5, -3.0)])
    legacy.add(5, -1.5, [(5, -1.5)])
    # Then
    assert legacy.take() == {
        "tokens": ["t7", "same", "t5"],
        "token_logprobs": [None, -0.5, -1.5],
        "top_logprobs": [None, {"same": -0.25, "t5": -3.0}, {"t5": -1.5}],
        "text_offset": [0, 2, 6],
    }
    assert legacy.take()["tokens"] == []


@pytest.mark.parametrize(
    ("kind", "field", "wrong"),
    [
        (CompletionBody, "prompt", None),
        (ChatBody, "documents", 1),
        (ChatBody, "stop", 1),
        (EmbeddingBody, "input", None),
        (ScoreBody, "text_1", None),
        (DetokenizeBody, "tokens", "a"),
    ],
)
def test_a_list_of_wrong_items_is_few_errors(kind: Any, field: str, wrong: Any) -> None:
    # A million errors would take minutes of the event loop and gigabytes.
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"messages": MESSAGES, field: [wrong] * 10_000})
    assert caught.value.error_count() < 10


def test_an_ignored_field_can_have_any_name() -> None:
    header = ignored_header(["a\x00b", "c\r\nd", "é\x7f"])
    assert header == {"x-skynet-ignored": "a?b, c??d, ??"}
