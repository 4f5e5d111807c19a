"""The gateway as a process, over a real cluster: OpenAI's client, keys, disconnects, kills."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import openai
import pytest
from checkpoints import Tiny, letters
from gateways import ADMIN, USER, GatewayProcess, content_of, events_of, gateway
from processes import is_gone, run, wait_for

from skynet.local.cluster import LocalCluster

JSON = {"content-type": "application/json"}
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def served(
    cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    with gateway(cluster.url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def messages(prompt: list[int]) -> list[dict[str, str]]:
    return [{"role": "user", "content": letters(prompt)}]


def test_openais_client_gets_transformers_tokens(served: GatewayProcess, tiny: Tiny) -> None:
    # Given
    client = served.openai()
    (model,) = client.models.list().data
    for prompt, tokens in zip(tiny.prompts, tiny.tokens, strict=True):
        ask = {"model": model.id, "temperature": 0, "max_tokens": len(tokens)}
        expected = letters(tokens)
        # When / Then: whole, streamed, and as a completion of text and of token ids
        whole = client.chat.completions.create(messages=messages(prompt), **ask)
        assert whole.choices[0].message.content == expected
        assert whole.usage is not None
        assert whole.usage.completion_tokens == len(tokens)
        assert whole.usage.prompt_tokens == len(prompt)
        with client.chat.completions.stream(messages=messages(prompt), **ask) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert text == expected
        completions = client.completions.create(prompt=[letters(prompt), letters(prompt)], **ask)
        assert [choice.text for choice in completions.choices] == [expected] * 2
        assert client.completions.create(prompt=[prompt], **ask).choices[0].text == expected


def test_several_choices_and_the_usage_of_a_stream(served: GatewayProcess, tiny: Tiny) -> None:
    # When
    chunks = list(
        served.openai().chat.completions.create(
            model="",
            messages=messages(tiny.prompts[0]),
            n=3,
            seed=5,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    # Then
    assert len({(chunk.id, chunk.model, chunk.created) for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    ends = [c for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(choice.index for choice in ends) == [0, 1, 2]
    assert {choice.finish_reason for choice in ends} <= {"stop", "length"}


@pytest.mark.parametrize("key", ["", "wrong-key-0000"])
def test_without_a_key_nothing_but_health_is_answered(served: GatewayProcess, key: str) -> None:
    with served.http(key) as http:
        for path in ("/v1/models", "/version", "/tokenizer_info", "/openapi.json", "/nothing"):
            answer = http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/health").status_code == 200
        assert http.get("/ready").json()["status"] == "ready"


def test_errors_of_the_cluster_the_body_and_the_framework_have_one_form(
    served: GatewayProcess,
) -> None:
    client = served.openai()
    ask = {"messages": [{"role": "user", "content": "ab"}]}
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobodys", **ask)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="", messages=messages([3] * 3000))
    assert caught.value.code == "context_length_exceeded"
    assert "This model's maximum context length is" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="", **ask, extra_body={"guided_regex": "a"})
    assert caught.value.param == "guided_regex"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="", **ask, temperature=1000)
    assert caught.value.param == "temperature"
    with served.http() as http:
        for answer in (
            http.post(
                "/v1/completions", content=b"{", headers={"content-type": "application/json"}
            ),
            http.post("/v1/completions", content=b"[" * 100_000),
            http.get("/v1/chat/completions"),
            http.post("/v1/completions", json={"prompt": "ab", "stream_options": {}}),
        ):
            assert answer.status_code in (400, 405)
            assert isinstance(answer.json()["error"]["message"], str)


def test_a_client_that_leaves_cancels_its_request(
    served: GatewayProcess, cluster: LocalCluster, tiny: Tiny
) -> None:
    # Given answers that would take long: a stream, a whole one, and one that has not begun
    def open_requests() -> list[str]:
        return cluster.client.requests.open_ids()

    ask = {"messages": messages(tiny.prompts[0]), "max_tokens": 1900, "ignore_eos": True}
    with served.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as answer:
            next(islice(events_of(answer.iter_lines()), 3, None))
            assert open_requests()
        # When / Then
        wait_for("the stream's request is cancelled", lambda: not open_requests())
        with pytest.raises(openai.APITimeoutError):
            served.openai().chat.completions.create(
                model="", extra_body=ask, messages=[], timeout=0.5
            )
        wait_for("the whole answer's request is cancelled", lambda: not open_requests())
    assert is_alive(served)


def is_alive(served: GatewayProcess) -> bool:
    return not is_gone(served.process.pid)


def test_another_gateway_goes_on_with_a_stream_whose_gateway_is_killed(
    cluster: LocalCluster, tiny: Tiny, tmp_path: Path, served: GatewayProcess
) -> None:
    # Given
    ask = {"messages": messages(tiny.prompts[1]), "max_tokens": 400, "ignore_eos": True}
    body = {**ask, "temperature": 0, "stream": True}
    with gateway(cluster.url, tmp_path, "killed") as killed, killed.http() as http:
        text, last, chat_id = "", "", ""
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for event_id, chunk in islice(events_of(answer.iter_lines()), 40):
                text += content_of(chunk)
                last, chat_id = event_id or last, chunk["id"]
            # When it is killed in mid-stream
            os.kill(killed.process.pid, signal.SIGKILL)
            wait_for("the gateway is gone", lambda: is_gone(killed.process.pid))
    # Then the other one has the rest, and the whole
    with served.http() as http:
        path = f"/v1/chat/completions/{chat_id}"
        with http.stream(
            "GET", path, params={"stream": "true"}, headers={"last-event-id": last}
        ) as answer:
            for _, chunk in events_of(answer.iter_lines()):
                assert chunk["id"] == chat_id
                text += content_of(chunk)
        whole = http.get(path).json()["choices"][0]["message"]["content"]
    expected = cluster.submit_prompt(tiny.prompts[1], max_tokens=400, ignore_eos=True).get().text
    assert text == whole == expected
    # And a stranger does not
    with served.http(ADMIN) as http:
        assert http.get(path).status_code == 200
    with gateway(cluster.url, tmp_path, "others", SKYNET_API_KEYS="other other-key-1") as others:
        with others.http("other-key-1") as http:
            assert http.get(path).status_code == 404


def test_a_gateway_that_is_told_to_end_finishes_its_answers(
    cluster: LocalCluster, tiny: Tiny, tmp_path: Path
) -> None:
    # Given an open stream
    ask = {"messages": messages(tiny.prompts[0]), "max_tokens": 300, "ignore_eos": True}
    with gateway(cluster.url, tmp_path) as ending, ending.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as answer:
            events = events_of(answer.iter_lines())
            next(events)
            # When
            ending.process.terminate()
            # Then it answers that it drains, and finishes the stream
            with ending.http() as other:
                wait_for("it drains", lambda: other.get("/ready").status_code == 503)
                refused = other.post("/v1/chat/completions", json=ask)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            chunks = [chunk for _, chunk in events]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        wait_for("it has ended", lambda: is_gone(ending.process.pid))


def test_a_batch_survives_its_gateway(cluster: LocalCluster, tiny: Tiny, tmp_path: Path) -> None:
    # Given
    lines = [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "messages": messages(tiny.prompts[number % len(tiny.prompts)]),
                "temperature": 0,
                "max_tokens": 24,
                "ignore_eos": True,
            },
        }
        for number in range(24)
    ]
    source = tmp_path / "requests.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # When its gateway is killed
    with gateway(cluster.url, tmp_path, "first") as first:
        client = first.openai()
        file = client.files.create(file=source, purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        output = tmp_path / "batches" / f"{batch.id}.output"
        wait_for("some answers", lambda: output.exists() and output.read_bytes().count(b"\n") > 3)
        os.kill(first.process.pid, signal.SIGKILL)
        before = output.read_bytes().splitlines()[:3]
    # Then the next one answers the rest
    with gateway(cluster.url, tmp_path, "second") as second:
        client = second.openai()
        wait_for("the end", lambda: client.batches.retrieve(batch.id).status == "completed")
        done = client.batches.retrieve(batch.id)
        assert done.output_file_id is not None
        answers = client.files.content(done.output_file_id).content.splitlines()
    assert answers[:3] == before
    by_id = {answer["custom_id"]: answer for answer in map(json.loads, answers)}
    assert set(by_id) == {str(line["custom_id"]) for line in lines}
    generations = cluster.submit_prompts(tiny.prompts, max_tokens=24, ignore_eos=True)
    expected = [generation.get().text for generation in generations]
    for number, line in enumerate(lines):
        content = by_id[str(line["custom_id"])]["response"]["body"]["choices"][0]["message"]
        assert content["content"] == expected[number % len(tiny.prompts)]
    # And the command does the same with the same lines
    answers_file = tmp_path / "answers.jsonl"
    words = ("skynet.cli", "batch", str(source), "-o", str(answers_file))
    run(*words, environment={"SKYNET_REDIS_URL": cluster.url})
    assert len(answers_file.read_text().splitlines()) == len(lines)
    run(*words, environment={"SKYNET_REDIS_URL": cluster.url})
    assert len(answers_file.read_text().splitlines()) == len(lines)


def test_models_are_found_by_name(cluster: LocalCluster, tiny: Tiny, tmp_path: Path) -> None:
    # Given two names, one of a Redis that is away
    options = ("--cluster", f"here={cluster.url}", "--cluster", "away=redis://127.0.0.1:1/0")
    with gateway("redis://127.0.0.1:1/0", tmp_path, "named", *options) as named:
        client = named.openai(USER)
        # When / Then
        assert [model.id for model in client.models.list()] == ["here"]
        ask = {"messages": messages(tiny.prompts[0]), "temperature": 0, "max_tokens": 4}
        assert client.chat.completions.create(model="here", **ask).model == "here"
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="away", **ask)
        assert caught.value.status_code == 503
        assert caught.value.code == "cluster_unavailable"
