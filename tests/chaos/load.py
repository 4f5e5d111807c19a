"""The load: client threads that submit, read, reconnect, cancel, and record the results."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import kombu.exceptions
import kombu.pools
import redis

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import ClusterUnreachable, RequestCancelled, SkynetError
from tests.chaos.case import GRACE_S, RETRY_S, Case
from tests.chaos.http_load import HttpClient, HttpOutcome

T = TypeVar("T")
UNREACHABLE = (
    ClusterUnreachable,
    redis.ConnectionError,
    redis.TimeoutError,
    kombu.exceptions.OperationalError,
    ConnectionError,
)
MODES = {"read": 4, "wait": 2, "come back": 3, "cancel": 1}
SHARE_OVER_HTTP = 0.5


@dataclass
class Outcome:
    """One request as one client saw it.

    reads: for each connection to the stream, its start index and the (index, token) pairs read.
    answer: the tokens of the result, if the client waited for it.
    """

    id: str
    case: Case
    mode: str
    reads: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)
    answer: list[int] | None = None
    cancelled: bool = False
    problem: str = ""
    seconds: float = 0.0


class Load:
    """`num_clients` threads, each with one request at a time.

    gateways: URLs; half of the requests go over HTTP if there are any.
    """

    def __init__(
        self,
        url: str,
        cases: list[Case],
        chance: random.Random,
        num_clients: int,
        request_timeout_s: float,
        gateways: Sequence[str] = (),
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.http_outcomes: list[HttpOutcome] = []
        self.problems: list[str] = []  # of submissions
        self.last_token = 0.0  # time of the last token read, monotonic
        self.num_retries = 0  # repeated submissions, because Redis did not answer
        self._cases = cases
        self._streamed = [case for case in cases if case.num_beams == 1]  # beams do not stream
        self._gateways = gateways
        self._timeout_s = request_timeout_s
        self._end = threading.Event()
        seeds = [chance.random() for _ in range(num_clients)]
        self._threads = [
            threading.Thread(target=self._run, args=(url, random.Random(seed)), daemon=True)
            for seed in seeds
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> list[str]:
        """Submit no more, wait for running requests; returns problems, hanging clients included."""
        self._end.set()
        deadline = time.monotonic() + self._timeout_s + 2 * GRACE_S
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        kombu.pools.reset()  # so that only the cluster's connections are counted
        gc.collect()
        late = sum(thread.is_alive() for thread in self._threads)
        return self.problems + ([f"{late} clients hang"] if late else [])

    def _run(self, url: str, chance: random.Random) -> None:
        while not self._end.is_set():
            client = Client(url)
            http = HttpClient(self._gateways, chance, self._timeout_s, self._end)
            try:
                for _ in range(10):  # then with new connections, like a new process
                    if self._end.is_set():
                        break
                    if self._gateways and chance.random() < SHARE_OVER_HTTP:
                        self._one_over_http(http, chance)
                    else:
                        self._one(client, chance)
            except Exception as error:  # any is wrong, and goes to the report
                self.problems.append(f"submission: {type(error).__name__}: {error}")
                self._end.wait(RETRY_S)
            finally:
                http.close()
                client.close()

    def _one_over_http(self, http: HttpClient, chance: random.Random) -> None:
        outcome = http.complete(chance.choice(self._streamed), self._note_token)
        if outcome is not None:
            self.http_outcomes.append(outcome)

    def _one(self, client: Client, chance: random.Random) -> None:
        case = chance.choice(self._cases)
        mode = chance.choices(list(MODES), list(MODES.values()))[0]
        started = time.monotonic()
        deadline = started + self._timeout_s + GRACE_S
        generation = self._submit(client, case)
        if generation is None:
            return
        outcome = Outcome(generation.id, case, mode)
        self.outcomes.append(outcome)
        watcher = _Watcher(client, outcome, chance, deadline, self._note_token)
        try:
            watcher.wait() if mode == "wait" else watcher.read()
        except RequestCancelled:
            outcome.cancelled = True
        except Exception as error:  # any is wrong, and goes to the report
            outcome.problem = f"{type(error).__name__}: {error}"
        outcome.seconds = time.monotonic() - started

    def _note_token(self) -> None:
        self.last_token = time.monotonic()

    def _submit(self, client: Client, case: Case) -> Generation | None:
        while not self._end.is_set():
            try:
                return client.submit_prompt(case.prompt, timeout=self._timeout_s, **case.options)
            except UNREACHABLE:
                self.num_retries += 1
                self._end.wait(RETRY_S)
        return None


class _Watcher:
    """One client and its request."""

    def __init__(
        self,
        client: Client,
        outcome: Outcome,
        chance: random.Random,
        deadline: float,
        note_token: Callable[[], None],
    ) -> None:
        self.client = client
        self.outcome = outcome
        self.chance = chance
        self.deadline = deadline
        self.note_token = note_token
        self.until_cancel = chance.randrange(0, 100) if outcome.mode == "cancel" else -1

    def wait(self) -> None:
        """Wait for the whole answer, like a caller of `get`."""

        def get() -> list[int]:
            left = max(1.0, self.deadline - time.monotonic())
            return Generation(self.outcome.id, self.client).get(timeout=left).token_ids

        self.outcome.answer = self._patiently(get)

    def read(self) -> None:
        """Read the stream, reconnecting by chance and when the connection is lost."""
        while not self._patiently(self._read_on):
            pass

    def _read_on(self) -> bool:
        """Continue after the last read token, or a little before it; True at the end."""
        last = self.outcome.reads[-1] if self.outcome.reads else (0, [])
        start = max(0, last[0] + len(last[1]) - self.chance.choice((0, 0, 3)))
        seen: list[tuple[int, int]] = []
        self.outcome.reads.append((start, seen))
        for token in Generation(self.outcome.id, self.client).tokens(start):
            if token.index < 0:  # text without a token, at the end
                continue
            seen.append((token.index, token.id))
            self.note_token()
            if 0 <= self.until_cancel <= token.index:
                self.until_cancel = -1
                self._patiently(Generation(self.outcome.id, self.client).cancel)
            if self.outcome.mode == "come back" and self.chance.random() < 0.05:
                return False
        return True

    def _patiently(self, work: Callable[[], T]) -> T:
        """The result of `work`, tried again while Redis does not answer, until the deadline."""
        while True:
            try:
                return work()
            except UNREACHABLE as error:
                if time.monotonic() > self.deadline:
                    raise SkynetError(f"no connection until the deadline: {error}") from error
                time.sleep(RETRY_S)
