"""The chaos suite's HTTP client joins a stream that is cut anywhere, and its oracle sees errors."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from gateway_fakes import FakeClient, decoder, fake_app

from skynet.gateway.config import GatewayConfig
from skynet.gateway.server import listen, server_of
from skynet.request.record import Token
from tests.chaos import http_load
from tests.chaos.case import GRACE_S, Answer, Case
from tests.chaos.http_load import HttpClient, HttpOutcome
from tests.chaos.http_oracle import http_problems
from tests.chaos.oracle import case_of
from tests.redis_servers import free_port

PIECES = ["He", "llo ", "w\u00f6r", "ld"]
CASE = Case((1, 2), len(PIECES), ignore_eos=True)
ANSWER = Answer([5, 6, 7, 8], "".join(PIECES) + "!")
RIGHT = HttpOutcome(CASE, True, "cmpl-1", ANSWER.text, [1, 2, 3, 4, 5], "length", 4)


def event(position: int, text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": reason}
    return event_of({"id": "cmpl-1", "choices": [choice]}, f"id: {position}\n")


def event_of(data: dict[str, Any], first: str = "") -> bytes:
    return f"{first}data: {json.dumps(data)}\n\n".encode()


def stream(after: int) -> list[bytes]:
    """What a gateway sends after a position: comments, tokens, the end with held-back text."""
    tokens = [event(i + 1, text) for i, text in enumerate(PIECES)][after:]
    usage = event_of({"id": "cmpl-1", "choices": [], "usage": {"completion_tokens": len(PIECES)}})
    end = [event(len(PIECES) + 1, "!", "length")] if after <= len(PIECES) else []
    return [b": ok\n", *tokens, b": keep-alive\n", *end, usage, b"data: [DONE]\n\n"]


def answer(pieces: list[bytes], is_chunked: bool = True) -> bytes:
    """An HTTP response; without chunks its end is that of the connection."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    if not is_chunked:
        return head + b"connection: close\r\n\r\n" + b"".join(pieces)
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""]]
    return head + b"transfer-encoding: chunked\r\n\r\n" + b"".join(chunks)


def error(status: int, code: str) -> bytes:
    body = json.dumps({"error": {"code": code, "message": "why"}}).encode()
    return b"HTTP/1.1 %d Error\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


@dataclass
class Made:
    """Two made gateways.

    script: what the next requests get; then they get the stream from where they ask for it.
    asked: gateway, method and Last-Event-ID of each request.
    """

    urls: list[str] = field(default_factory=list)
    script: list[bytes] = field(default_factory=list)
    asked: list[tuple[int, str, str]] = field(default_factory=list)

    async def serve(self, started: threading.Event, end: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            for number in range(2):
                server = await asyncio.start_server(self._handler(number), "127.0.0.1")
                await stack.enter_async_context(server)
                self.urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            started.set()
            await end.wait()

    def _handler(self, number: int) -> Callable[..., Any]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
            await reader.readexactly(int(headers.get("content-length", 0)))
            last = headers.get("last-event-id", "")
            self.asked.append((number, head.split(" ", 1)[0], last))
            writer.write(self.script.pop(0) if self.script else answer(stream(int(last or 0))))
            writer.close()
            await writer.wait_closed()

        return handle


@pytest.fixture(scope="module")
def servers() -> Iterator[Made]:
    made, started, end = Made(), threading.Event(), asyncio.Event()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=runner.run, args=(made.serve(started, end),))
        thread.start()
        assert started.wait(20)
        yield made
        loop.call_soon_threadsafe(end.set)
        thread.join()


@pytest.fixture
def made(servers: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(http_load, "SHARE_LEAVING", 0.0)
    servers.script.clear()
    servers.asked.clear()
    return servers


@pytest.fixture
def ask(made: Made) -> Iterator[Callable[[], HttpOutcome]]:
    client = HttpClient(made.urls, random.Random(1), 60, threading.Event(), retry_s=0)

    def outcome() -> HttpOutcome:
        outcome = client.complete(CASE)
        assert outcome is not None
        return outcome

    yield outcome
    client.close()


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_stream_that_is_cut_at_any_byte_is_joined_at_the_other_gateway(
    made: Made, ask: Callable[[], HttpOutcome], is_chunked: bool
) -> None:
    whole = answer(stream(0), is_chunked)
    num_retried = num_resumed = 0
    for length in range(len(whole)):
        # Given
        made.asked.clear()
        made.script[:] = [whole[:length]]
        # When
        outcome = ask()
        # Then each token is there once
        assert list(http_problems(outcome, ANSWER)) == []
        assert outcome.problem == ""
        num_retried += outcome.num_retried
        num_resumed += outcome.num_resumed
        if len(made.asked) == 1:  # the end had come
            continue
        (first, _, _), (second, method, last) = made.asked
        assert first != second
        assert method == ("post" if outcome.num_retried else "get")
        assert outcome.num_retried + outcome.num_resumed == 1
        assert last == ("" if outcome.num_retried else str(outcome.positions[int(last) - 1]))
    assert num_retried >= len(event(1, PIECES[0]))
    assert num_resumed >= sum(map(len, stream(1)[1:-2])) - 1


def test_gateways_that_restart_are_tried_until_one_answers(
    made: Made, ask: Callable[[], HttpOutcome]
) -> None:
    # Given a stream that is cut after two tokens
    cut = answer(stream(0)[:3])[:-5]
    busy = [
        error(503, "draining"),
        b"",
        error(503, "cluster_unavailable"),
        error(429, "queue_full"),
    ]
    made.script[:] = [*busy, cut, *busy]
    # When
    outcome = ask()
    # Then
    assert list(http_problems(outcome, ANSWER)) == []
    assert (outcome.num_retried, outcome.num_resumed) == (4, 1)
    assert [each[1:] for each in made.asked] == 5 * [("post", "")] + 5 * [("get", "2")]


def test_a_gateway_that_does_not_listen_is_passed_over(made: Made) -> None:
    for seed in range(4):  # it is the first one, or the second
        urls = [f"http://127.0.0.1:{free_port()}", made.urls[0]]
        client = HttpClient(urls, random.Random(seed), 60, threading.Event(), retry_s=0)
        made.script[:] = [answer(stream(0)[:3])[:-5]]
        outcome = client.complete(CASE)
        client.close()
        assert outcome is not None
        assert list(http_problems(outcome, ANSWER)) == []
        assert outcome.num_resumed == 1


def test_an_error_within_a_stream_is_a_problem_unless_the_cluster_is_away(
    made: Made, ask: Callable[[], HttpOutcome]
) -> None:
    # Given
    def failing(code: str) -> bytes:
        return answer([event(1, PIECES[0]), event_of({"error": {"code": code, "message": "why"}})])

    # When / Then
    made.script[:] = [failing("cluster_unavailable")]
    assert list(http_problems(ask(), ANSWER)) == []
    made.script[:] = [failing("shard_failed")]
    assert ask().problem == "Refused: shard_failed: why"


def test_an_answer_that_is_not_found_any_more_is_lost(
    made: Made, ask: Callable[[], HttpOutcome]
) -> None:
    made.script[:] = [answer(stream(0)[:3])[:-5], error(404, "answer_not_found")]
    assert "HTTP 404" in ask().problem


def test_a_client_that_leaves_after_each_token_has_them_all(
    made: Made, ask: Callable[[], HttpOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(http_load, "SHARE_LEAVING", 1.0)
    monkeypatch.setattr(http_load, "LEAVES_AT", 1.0)
    # When
    outcome = ask()
    # Then
    assert list(http_problems(outcome, ANSWER)) == []
    assert (outcome.num_left, outcome.num_resumed) == (len(PIECES), 0)


def test_a_request_is_not_begun_after_the_run_and_ends_with_its_deadline(
    made: Made,
) -> None:
    end = threading.Event()
    client = HttpClient(made.urls, random.Random(1), -GRACE_S, end, retry_s=0)
    made.script[:] = [error(503, "draining")]
    outcome = client.complete(CASE)
    assert outcome is not None
    assert "no gateway until the deadline" in outcome.problem
    end.set()
    assert client.complete(CASE) is None
    client.close()


@contextmanager
def serving(client: FakeClient) -> Iterator[str]:
    """The URL of a gateway behind a real socket."""
    config = GatewayConfig(port=0)
    listener = listen(config)
    server = server_of(fake_app(client, config))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def test_real_gateways_run_the_case_and_continue_each_others_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given two gateways of one cluster, and a client that changes gateways after each event
    monkeypatch.setattr(http_load, "SHARE_LEAVING", 1.0)
    monkeypatch.setattr(http_load, "LEAVES_AT", 1.0)
    cases = [
        Case((1, 2), 6),
        Case((3, 4), 7, temperature=0.7, top_k=20, top_p=0.9, seed=2**32 - 1),
        Case((5,), 60, stop=("are",)),
    ]
    cluster = FakeClient(decoder())
    with serving(cluster) as first, serving(cluster) as second:
        client = HttpClient([first, second], random.Random(1), 60, threading.Event())
        forms = set()
        for case in cases * 6:
            # When
            outcome = client.complete(case)
            # Then the request is the direct one, and its answer is whole
            assert outcome is not None
            assert outcome.problem == ""
            record = cluster.records[outcome.id.removeprefix("cmpl-")]
            assert case_of(record) == case
            items = cluster.items(record.id)
            tokens = [item.id for item in items if isinstance(item, Token)]
            text = "".join(item.text for item in items)
            assert list(http_problems(outcome, Answer(tokens, text))) == []
            assert outcome.num_left >= 3
            forms.add(outcome.has_logprobs)
        client.close()
    assert forms == {True, False}


def test_a_request_that_was_sent_is_answered_though_the_run_ends(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run that ends when the first gateway has died before the first event
    end = threading.Event()
    monkeypatch.setattr(http_load.time, "sleep", lambda _: end.set())
    made.script[:] = [b""]
    client = HttpClient(made.urls, random.Random(1), 60, end)
    # When
    outcome = client.complete(CASE)
    client.close()
    # Then
    assert end.is_set()
    assert outcome is not None
    assert list(http_problems(outcome, ANSWER)) == []
    assert outcome.num_retried == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"positions": [1, 2, 2, 3, 4, 5]}, "positions"),  # twice
        ({"positions": [1, 2, 4, 5]}, "positions"),  # not at all
        ({"positions": [2, 1, 3, 4, 5]}, "positions"),
        ({"positions": [1, 2, 3, 4, 5, 5]}, "positions"),  # two ends
        ({"positions": [1, 2, 2, 3, 4, 5], "has_logprobs": False}, "positions"),
        ({"positions": [1, 2, 3], "has_logprobs": False}, "positions"),
        ({"positions": [], "has_logprobs": False}, "positions"),
        ({"text": "Hello w\u00f6rl!"}, "from 10 on it is '!', expected 'd!'"),
        ({"text": "Hello w\u00f6rld!!"}, "of 13 characters, expected 12"),
        ({"completion_tokens": 5}, "its usage has 5"),
        ({"finish_reason": ""}, "ended with no reason"),
    ],
)
def test_the_oracle_sees_what_is_wrong(change: dict[str, Any], problem: str) -> None:
    assert list(http_problems(RIGHT, ANSWER)) == []
    (found,) = http_problems(replace(RIGHT, **change), ANSWER)
    assert problem in found
