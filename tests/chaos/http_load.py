"""Requests over HTTP: streams that go on at the next gateway when theirs is lost."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.chaos.case import GRACE_S, RETRY_S, Case

PATH = "/v1/completions"
TIMEOUT = httpx2.Timeout(15.0, connect=5.0)  # gateways send a comment every 10 s
AGAIN = (429, 503)  # statuses of gateways and clusters that cannot answer now
AGAIN_CODES = ("cluster_unavailable", "no_model", "draining")  # the same, within a stream
SHARE_WITH_LOGPROBS = 0.5
SHARE_LEAVING, LEAVES_AT = 0.3, 0.05  # of clients that leave and come back; chance at an event


class Interrupted(Exception):
    """The stream ended early, or the gateway cannot answer now."""


class Ended(Exception):
    """The run ended before the request was sent."""


class Refused(Exception):
    """An error of the gateway that the client does not expect."""


@dataclass
class HttpOutcome:
    """One request as its client saw it.

    id: of the request; "" before the first event.
    positions: of the events, tokens of the answer so far.
    completion_tokens: of the usage, None if the connection was lost between the end and it.
    num_streams: connections that had an event.
    num_left: of these, those that the client closed, to come back.
    num_retried: how often the request was sent again, because there was no event yet.
    """

    case: Case
    has_logprobs: bool = False
    id: str = ""
    text: str = ""
    positions: list[int] = field(default_factory=list)
    finish_reason: str = ""
    completion_tokens: int | None = None
    num_streams: int = 0
    num_left: int = 0
    num_retried: int = 0
    problem: str = ""
    seconds: float = 0.0

    @property
    def num_resumed(self) -> int:
        """Streams taken up again after a lost connection."""
        return max(0, self.num_streams - 1 - self.num_left)


class HttpClient:
    """A client of several gateways, with one request at a time.

    timeout_s: of a request.
    end: no new request is begun; one that was sent is sent again, and read to its end.
    retry_s: between connections without an event.
    """

    def __init__(
        self,
        urls: Sequence[str],
        chance: random.Random,
        timeout_s: float,
        end: threading.Event,
        retry_s: float = RETRY_S,
    ) -> None:
        self._urls = urls
        self._chance = chance
        self._timeout_s = timeout_s
        self._end = end
        self._retry_s = retry_s
        self._http = httpx2.Client(timeout=TIMEOUT, verify=False, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def complete(
        self, case: Case, note_token: Callable[[], None] = lambda: None
    ) -> HttpOutcome | None:
        """The outcome of one request; None if `end` came before it was sent."""
        outcome = HttpOutcome(case, has_logprobs=self._chance.random() < SHARE_WITH_LOGPROBS)
        started = time.monotonic()
        try:
            self._complete(outcome, started + self._timeout_s + GRACE_S, note_token)
        except Ended:
            return None
        except Exception as error:  # any is wrong, and goes to the report
            outcome.problem = f"{type(error).__name__}: {error}"
        outcome.seconds = time.monotonic() - started
        return outcome

    def _complete(
        self, outcome: HttpOutcome, deadline: float, note_token: Callable[[], None]
    ) -> None:
        """Read the whole answer, after each lost connection from the next gateway."""
        leaves_at = LEAVES_AT if self._chance.random() < SHARE_LEAVING else 0.0
        urls = itertools.cycle(self._urls)
        for url in itertools.islice(urls, self._chance.randrange(len(self._urls)), None):
            if self._end.is_set() and not (outcome.id or outcome.num_retried):
                raise Ended
            num_streams = outcome.num_streams
            try:
                with closing(self._events(url, outcome)) as events:
                    for _ in events:
                        note_token()
                        if not outcome.finish_reason and self._chance.random() < leaves_at:
                            outcome.num_left += 1
                            break
                    else:
                        return
            except Interrupted as error:
                if outcome.finish_reason:  # only the usage is missing
                    return
                if time.monotonic() > deadline:
                    raise Refused(f"no gateway until the deadline: {error}") from None
                outcome.num_retried += not outcome.id
                if outcome.num_streams == num_streams:
                    time.sleep(self._retry_s)

    def _events(self, url: str, outcome: HttpOutcome) -> Generator[None]:
        """Add each event of a gateway's stream to the outcome, up to the end.

        Raises:
            Interrupted: the connection is lost, or the gateway cannot answer now.
            Refused: it has another error.
        """
        try:
            with self._open(url, outcome) as answer:
                if answer.status_code != 200:
                    _raise_error(answer.status_code, answer.read())
                for number, (position, data) in enumerate(events_of(answer.iter_lines())):
                    if data == "[DONE]":
                        return
                    _take(outcome, position, json.loads(data))
                    outcome.num_streams += number == 0
                    yield
        except httpx2.TransportError as error:
            raise Interrupted(f"{url}: {type(error).__name__}: {error}") from error
        raise Interrupted(f"{url}: the stream ended without [DONE]")

    def _open(self, url: str, outcome: HttpOutcome) -> AbstractContextManager[httpx2.Response]:
        if not outcome.id:
            body = body_of(outcome.case, self._timeout_s, outcome.has_logprobs)
            headers = {"x-skynet-on-disconnect": "continue"}
            return self._http.stream("POST", url + PATH, json=body, headers=headers)
        return self._http.stream(
            "GET",
            f"{url}{PATH}/{outcome.id}",
            params={"stream": "true", "include_usage": "true"},
            headers={"last-event-id": str(outcome.positions[-1])},
        )


def body_of(case: Case, timeout_s: float, has_logprobs: bool) -> dict[str, Any]:
    """The body of a request for a stream. Its options are those of the same direct request."""
    body: dict[str, Any] = {
        "prompt": list(case.prompt),
        "max_tokens": case.max_tokens,
        "temperature": case.temperature,
        "ignore_eos": case.ignore_eos,
        "timeout": timeout_s,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if case.temperature:
        body |= {"top_k": case.top_k, "top_p": case.top_p, "seed": case.seed}
    if case.stop:
        body["stop"] = list(case.stop)
    if has_logprobs:  # then each token has an event
        body["logprobs"] = 1
    return body


def events_of(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The id and the data of each event. An event that was cut has no empty line after it."""
    event_id, data = "", ""
    for line in lines:
        if line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and data:
            yield event_id, data
            event_id, data = "", ""


def _take(outcome: HttpOutcome, position: str, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        _raise_problem(chunk["error"])
    for choice in chunk["choices"]:
        outcome.id = chunk["id"]
        outcome.positions.append(int(position))
        outcome.text += choice["text"]
        outcome.finish_reason = choice["finish_reason"] or outcome.finish_reason
    if chunk.get("usage"):
        outcome.completion_tokens = chunk["usage"]["completion_tokens"]


def _raise_problem(error: dict[str, Any]) -> None:
    problem = Interrupted if error["code"] in AGAIN_CODES else Refused
    raise problem(f"{error['code']}: {error['message']}")


def _raise_error(status: int, content: bytes) -> None:
    problem = Interrupted if status in AGAIN else Refused
    raise problem(f"HTTP {status}: {content.decode(errors='replace')[:300]}")
