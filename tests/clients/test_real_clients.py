"""Clients that people have, as they are, against `skynet serve`: the answers of Transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from conftest import KEY, MODEL, NEW, QUESTION, Demo
from pydantic import BaseModel

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
Run = Callable[..., Any]
CITIES = {"Paris", "Rome", "Berlin"}
CHOICES = [" Paris", " Rome", " the city of Berlin."]
DOCUMENTS = [
    {"question": "The capital of France is", "choices": CHOICES, "label": 0},
    {
        "question": "Question: What is the capital of Italy?\nAnswer:",
        "choices": CHOICES,
        "label": 1,
    },
]


class City(BaseModel):
    name: str
    is_capital: bool


def check_city(city: dict[str, Any]) -> None:
    assert city["name"] in CITIES
    assert isinstance(city["is_capital"], bool)


def test_openai_python(base_url: str, greedy: str) -> None:
    # Given
    client = openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=60)
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
    }
    # When
    whole = client.chat.completions.create(**ask, max_completion_tokens=NEW)
    with client.chat.completions.stream(**ask, max_tokens=NEW) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "content.delta")
    response = client.responses.create(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=NEW
    )
    parsed = client.chat.completions.parse(**ask, max_tokens=64, response_format=City)
    # Then
    assert [whole.choices[0].message.content, streamed, response.output_text] == [greedy] * 3
    content = parsed.choices[0].message
    if parsed.choices[0].finish_reason == "stop":
        assert isinstance(content.parsed, City)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-key-0000").models.list()
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="a text")
    assert isinstance(caught.value.code, str)


def test_lm_eval_measures_the_log_likelihoods_of_transformers(run: Run, demo: Demo) -> None:
    # Given
    documents = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    # When
    measured = run("lm-eval", "lm_eval_client.py", DOCUMENTS=documents)
    # Then
    for document, pairs in zip(DOCUMENTS, measured["log_likelihoods"], strict=True):
        for choice, (value, is_greedy) in zip(CHOICES, pairs, strict=True):
            expected, likeliest = demo.log_likelihood(str(document["question"]), choice)
            assert float(value) == pytest.approx(expected, abs=1e-4)
            assert str(is_greedy) == str(likeliest)


def test_a_forced_tool_call_is_valid(base_url: str) -> None:
    # Given a model that was not trained for tools
    client = openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=60)
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {"name": "get_weather", "description": "of a city", "parameters": parameters}
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "temperature": 0,
        "max_tokens": 60,
    }
    # When
    whole = client.chat.completions.create(**ask).choices[0]
    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0]
    # Then
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city"}


def test_anthropic(run: Run, greedy: str) -> None:
    said = run("anthropic", "anthropic_client.py")
    assert said["answers"] == [greedy] * 3
    assert set(said["stop_reason"]) <= {"max_tokens", "end_turn"}
    assert said["input_tokens"] == said["counted"] > 0
    assert said["error"] == "not_found_error"


def test_langchain_openai(run: Run, greedy: str) -> None:
    said = run("langchain-openai", "langchain_client.py")
    assert said["answers"] == [greedy] * 2
    assert 0 < said["tokens"] == said["streamed_tokens"] <= NEW
    check_city(said["city"])


def test_instructor(run: Run) -> None:
    check_city(run("instructor", "instructor_client.py")["city"])


def test_pydantic_ai(run: Run, greedy: str) -> None:
    said = run("pydantic-ai", "pydantic_ai_client.py")
    assert said["answers"] == [greedy] * 2
    check_city(said["city"])


def test_llm(run: Run, greedy: str) -> None:
    said = run("llm", "llm_client.py")
    assert said["answers"] == [greedy] * 2
    check_city(said["city"])


def test_openai_node(run: Run, greedy: str) -> None:
    said = run("openai-npm", "openai_client.mjs")
    assert said["answers"] == [greedy] * 3
    assert said["tokens"] == [NEW, NEW]
    assert said["models"] == [MODEL]
    assert said["error"] == [True, "model_not_found", "model"]


def test_ai_sdk(run: Run, greedy: str) -> None:
    said = run("ai-sdk", "ai_sdk_client.mjs")
    assert said["answers"] == [greedy] * 2
    assert said["tokens"] == [NEW, NEW]
    check_city(said["city"])


def test_llama_index(run: Run, greedy: str, demo: Demo) -> None:
    said = run("llama-index", "llama_index_client.py")
    assert said["answers"] == [greedy] * 2
    assert said["completion"] == demo.answer(demo.text.encode(QUESTION), NEW)


def test_litellm(run: Run, greedy: str) -> None:
    said = run("litellm", "litellm_client.py")
    assert said["answers"] == [greedy] * 2
    assert said["ids"] == 1
    assert said["error"] == "ContextWindowExceededError"
