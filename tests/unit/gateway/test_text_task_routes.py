"""/v1/embeddings, /v1/classify, /v1/rerank and /v1/score."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from gateway_fakes import (
    FakeClient,
    call,
    decoder,
    encoder,
    fake_app,
    leave,
    post,
    strictly,
    vector_of,
)
from openai.types import CreateEmbeddingResponse

from skynet.errors import ShardFailed
from skynet.request.record import Record

TEXTS = ["a small cat", "the moon", "numbers are 1, 2, 10"]


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(encoder(), vector_of)


def vectors(client: FakeClient) -> list[list[float]]:
    """What the cluster answered, in the order of submission."""
    return [vector_of(record)["embedding"] for record in client.records.values()]  # type: ignore


def test_embeddings_of_texts(client: FakeClient) -> None:
    response = post(fake_app(client), "/v1/embeddings", {"model": "made", "input": TEXTS})
    answer = strictly(CreateEmbeddingResponse, response.json())
    assert [each.embedding for each in answer.data] == vectors(client)
    assert [each.index for each in answer.data] == [0, 1, 2]
    total = sum(len(record.prompt) for record in client.records.values())
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (total, total)
    assert {record.options.read["task"] for record in client.records.values()} == {"embed"}  # type: ignore


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a small cat", 1),
        (["a small cat"], 1),
        ([5, 6, 7], 1),
        ([[5, 6, 7], [8]], 2),
    ],
)
def test_all_forms_of_inputs(client: FakeClient, given: Any, expected: int) -> None:
    response = post(fake_app(client), "/v1/embeddings", {"input": given})
    assert len(response.json()["data"]) == expected
    if isinstance(given, list) and given[0] != "a small cat":
        ids = [given] if isinstance(given[0], int) else given
        assert [list(record.prompt) for record in client.records.values()] == ids


def test_base64_is_the_same_numbers(client: FakeClient) -> None:
    body = {"input": TEXTS, "encoding_format": "base64", "dimensions": 48, "user": "me"}
    response = post(fake_app(client), "/v1/embeddings", body)
    assert "x-skynet-ignored" not in response.headers
    read = [base64.b64decode(each["embedding"]) for each in response.json()["data"]]
    expected = np.array(vectors(client), np.float32)
    np.testing.assert_array_equal(np.stack([np.frombuffer(each, "<f4") for each in read]), expected)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": [5, 400]}, "input", "check_embedding_ctx_length=False"),
        ({"input": [[5], [-1]]}, "input[1]", "0 to 399"),
        ({"input": "x", "dimensions": 7}, "dimensions", "7: made has 48"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "item 1 is empty"),
        ({"input": [[]]}, "input", "item 0 is empty"),
        ({}, "input", "required"),
        ({"input": ["x"] * 2049}, "input", "at most 2048"),
        ({"input": "x", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "not cut"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": [5] * 1100}, "input", "maximum context length is 1024 tokens"),
        ({"input": "x", "model": "gpt-4"}, "model", "there is made"),
        ({"input": "x", "pooling": "best"}, None, "pooling 'best'"),
    ],
)
def test_what_is_refused(
    client: FakeClient, body: dict[str, Any], param: str | None, words: str
) -> None:
    response = post(fake_app(client), "/v1/embeddings", body)
    assert response.status_code == (404 if param == "model" else 400), response.text
    error = response.json()["error"]
    assert words in error["message"]
    assert error["param"] == param
    assert response.headers["x-should-retry"] == "false"
    assert not client.records


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/classify", {"input": "x"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("/v1/score", {"text_1": "x", "text_2": "y"}),
    ],
)
def test_a_model_says_what_it_does(path: str, body: dict[str, Any]) -> None:
    response = post(fake_app(FakeClient(decoder())), path, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        400,
        "unsupported_task",
        "model",
    )
    assert "supported: generate" in error["message"]


def test_classes_in_the_order_of_the_config() -> None:
    labels = [
        {"label": "b", "score": 0.7},
        {"label": "c", "score": 0.2},
        {"label": "a", "score": 0.1},
    ]
    model = encoder("ForSequenceClassification", id2label={0: "a", 1: "b", 2: "c"})
    client = FakeClient(model, lambda _: {"labels": labels})
    for path in ("/v1/classify", "/classify"):
        answer = post(fake_app(client), path, {"input": TEXTS[:2]}).json()
        assert answer["id"].startswith("classify-")
        expected = {"label": "b", "probs": [0.1, 0.7, 0.2], "num_classes": 3}
        assert answer["data"] == [{"index": n, **expected} for n in range(2)]


def cosines(client: FakeClient) -> list[float]:
    """Of the first vector with each other one."""
    first, *others = (np.array(each) for each in vectors(client))
    return [float(first @ o / np.linalg.norm(first) / np.linalg.norm(o)) for o in others]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking", "/v2/rerank"])
def test_documents_are_ranked(client: FakeClient, path: str) -> None:
    documents: list[Any] = [*TEXTS, {"text": "Hello world", "id": 7}]
    body = {"model": "made", "query": "a cat", "documents": documents, "top_n": 3}
    answer = post(fake_app(client), path, body).json()
    near = cosines(client)
    order = sorted(range(4), key=lambda n: -near[n])[:3]
    assert [each["index"] for each in answer["results"]] == order
    for each in answer["results"]:
        assert each["relevance_score"] == pytest.approx(near[each["index"]], abs=1e-6)
        assert each["document"] == {"text": [*TEXTS, "Hello world"][each["index"]]}
    assert answer["usage"]["total_tokens"] == sum(len(r.prompt) for r in client.records.values())


def test_documents_may_be_left_out_of_the_answer(client: FakeClient) -> None:
    body = {"query": "a cat", "documents": TEXTS, "return_documents": False}
    answer = post(fake_app(client), "/v1/rerank", body).json()
    assert [set(each) for each in answer["results"]] == [{"index", "relevance_score"}] * 3


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents")])
def test_scores_of_one_text_with_others(client: FakeClient, names: tuple[str, str]) -> None:
    body = {names[0]: "a cat", names[1]: TEXTS}
    for path in ("/v1/score", "/score"):
        client.records.clear()
        answer = post(fake_app(client), path, body).json()
        assert [each["score"] for each in answer["data"]] == pytest.approx(
            cosines(client), abs=1e-6
        )
        assert [(e["index"], e["object"]) for e in answer["data"]] == [
            (n, "score") for n in range(3)
        ]


def test_scores_of_pairs_embed_each_text_once(client: FakeClient) -> None:
    body = {"text_1": [TEXTS[0], TEXTS[1]], "text_2": [TEXTS[0], TEXTS[0]]}
    answer = post(fake_app(client), "/v1/score", body).json()
    assert len(client.records) == 2
    expected = [1.0, *cosines(client)]
    assert [each["score"] for each in answer["data"]] == pytest.approx(expected, abs=1e-6)


def cross_encoder() -> FakeClient:
    """A cluster whose model ranks; a pair's score is its length."""
    model = encoder("ForSequenceClassification", id2label={0: "LABEL_0"})
    return FakeClient(model, lambda record: {"score": float(len(record.prompt))})


def test_a_cross_encoder_ranks_documents() -> None:
    # Given a model with one label, and documents, of which the longest one is second
    client, documents = cross_encoder(), [TEXTS[0], TEXTS[2] * 3, TEXTS[1]]
    # When
    answer = post(fake_app(client), "/v1/rerank", {"query": "a cat", "documents": documents}).json()
    # Then each pair is a request, with token types
    records = list(client.records.values())
    lengths = [float(len(record.prompt)) for record in records]
    assert [record.options.read["task"] for record in records] == ["rerank"] * 3  # type: ignore
    for record in records:
        types = (record.options.read or {})["types"]
        assert len(types) == len(record.prompt)
        assert sorted(types) == list(types)
        assert set(types) == {0, 1}
    # And the documents are sorted by its score
    order = [each["index"] for each in answer["results"]]
    assert order == sorted(range(3), key=lambda n: -lengths[n])
    assert order[0] == 1
    scores = {each["index"]: each["relevance_score"] for each in answer["results"]}
    assert scores == dict(enumerate(lengths))
    assert answer["usage"]["total_tokens"] == sum(lengths)


def test_a_cross_encoder_scores_pairs() -> None:
    client = cross_encoder()
    body = {"text_1": "a cat", "text_2": TEXTS}
    answer = post(fake_app(client), "/v1/score", body).json()
    lengths = [len(record.prompt) for record in client.records.values()]
    assert [each["score"] for each in answer["data"]] == lengths


def test_an_instruction_that_the_model_does_not_read_is_refused() -> None:
    body = {"query": "a", "documents": ["b"], "instruction": "Find."}
    response = post(fake_app(cross_encoder()), "/v1/rerank", body)
    assert response.status_code == 400
    assert "trained without" in response.json()["error"]["message"]


def test_queries_and_documents_have_their_prompts() -> None:
    # Given a model of embeddings with prompts
    settings = {"pooling": "mean", "prompts": {"query": "query: ", "passage": "passage: "}}
    model = encoder(files={"embedding.json": json.dumps(settings).encode()})
    client = FakeClient(model, vector_of)
    # When the query is also a document
    body = {"query": "a cat", "documents": ["a cat", "the moon"]}
    response = post(fake_app(client), "/v1/rerank", body)
    assert response.status_code == 200
    # Then
    sent = [model.text.decode(record.prompt) for record in client.records.values()]
    assert sent == ["query: a cat", "passage: a cat", "passage: the moon"]
    # And embeddings take a prompt by its name
    post(fake_app(client), "/v1/embeddings", {"input": "x", "prompt_name": "query"})
    assert model.text.decode(list(client.records.values())[-1].prompt) == "query: x"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": "a", "queries": "b"}, "text_1"),
        ("/v1/score", {"queries": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"body": "b"}]}, "documents[0]"),
        (
            "/v2/rerank",
            {"query": "a", "documents": ["b"], "max_tokens_per_doc": 9},
            "max_tokens_per_doc",
        ),
    ],
)
def test_pairs_that_do_not_fit(
    client: FakeClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = post(fake_app(client), path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_one_failure_fails_all_and_cancels_the_rest() -> None:
    def answer(record: Record) -> Any:
        return ShardFailed("shard 1: broken") if len(client.records) == 3 else vector_of(record)

    client = FakeClient(encoder(), answer)
    response = post(fake_app(client), "/v1/embeddings", {"input": TEXTS})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "shard_failed")


def test_texts_of_a_client_that_left_are_cancelled(client: FakeClient) -> None:
    client.hold_at = 0
    asyncio.run(leave(fake_app(client), "/v1/embeddings", {"input": TEXTS}, client))
    assert len(client.records) == 3
    assert client.cancelled == set(client.records)


def test_a_text_that_is_none_is_named(client: FakeClient) -> None:
    response = post(fake_app(client), "/v1/embeddings", '{"input": ["x", "\\ud800"]}')
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "input[1]")
    assert "cannot be written as UTF-8" in error["message"]


def test_other_methods_have_the_same_form_of_error(client: FakeClient) -> None:
    response = call(fake_app(client), "GET", "/v1/embeddings")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
