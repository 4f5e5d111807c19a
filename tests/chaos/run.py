"""One run: start, record the undisturbed answers, attack under load, check."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import redis

from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.client.client import Client
from skynet.settings import settings
from skynet.staging.split import skysplit
from skynet.wire import keys
from tests.chaos import leaks, oracle
from tests.chaos.case import GRACE_S, Answer, Case
from tests.chaos.cluster import ChaosCluster
from tests.chaos.faults import FAULTS, LINK_FAULTS, Attack
from tests.chaos.http_oracle import judge_http
from tests.chaos.load import Load
from tests.chaos.report import Done, Report
from tests.chaos.undisturbed import READY_S, Expected, Say, check_gateways, undisturbed_answers
from tests.cluster.processes import wait_for

RECOVER_S = 120.0
PATIENT_SHARE = 0.75  # of faults that wait for recovery from the last one; others hit it
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Plan:
    """Options of a run.

    gap_s: maximum time between two faults. overlap: maximum number of concurrent faults.
    max_tokens: of the longest answer.
    """

    seed: int
    command: str
    model: str
    seconds: float
    stages: int
    shards: int
    spares: int
    orchestrators: int
    gateways: int
    pinned: bool
    sentinel: bool
    faults: tuple[str, ...]
    clients: int
    gap_s: float
    overlap: int
    request_timeout_s: float
    max_tokens: int
    chord_span: str
    weights: str | None


class Run:
    """One run, with its logs in `directory`."""

    def __init__(self, plan: Plan, directory: Path, say: Say) -> None:
        self.plan = plan
        self.say = say
        self.chance = random.Random(plan.seed)
        self.faults: list[Done] = []
        self.cluster = ChaosCluster(
            directory,
            self.chance,
            stages=plan.stages,
            shards=plan.shards,
            spares=plan.spares,
            orchestrators=plan.orchestrators,
            gateways=plan.gateways,
            pinned=plan.pinned,
            sentinel=plan.sentinel,
            faulty_links=not LINK_FAULTS.isdisjoint(plan.faults),
            environment={},
        )
        self._end = threading.Event()

    def __call__(self) -> Report:
        """Run it.

        Raises:
            WarmupFailed: before the first fault.
        """
        try:
            self.cluster.start()
            answers = self._warm_up()
            with self.cluster.connect() as client:
                before = self._level(client)
                self.say(f"undisturbed: {before}")
                return self._attack(client, answers, before)
        finally:
            self.cluster.stop()

    def _warm_up(self) -> dict[Case, Answer]:
        """Split the model; the answers of the undisturbed cluster."""
        plan = self.plan
        skysplit(
            plan.model,
            plan.stages,
            plan.shards,
            dtype="float32",
            chord_span=plan.chord_span,
            num_slots=max(4, plan.clients - 2),  # fewer than clients: some wait for a slot
            weights=plan.weights,
            url=self.cluster.server.url,
        )
        client = Client(self.cluster.server.url)
        try:
            client.submit_prompt([1], max_tokens=2, timeout=READY_S).get()
            wait_for("every worker to run", self.cluster.all_alive, READY_S)
            checkpoint = open_checkpoint(plan.model, settings().cache_dir)
            expected = Expected(checkpoint, rounded=plan.weights == "bf16")
            answers = undisturbed_answers(client, expected, self.chance, plan.max_tokens, self.say)
            check_gateways(self.cluster.gateway_urls, answers, plan.clients, self.say)
            return answers
        finally:
            client.close()

    # -- the attack ----------------------------------------------------------------------------

    def _attack(
        self, client: redis.Redis, answers: dict[Case, Answer], before: leaks.Level
    ) -> Report:
        plan = self.plan
        load = Load(
            self.cluster.server.url,
            list(answers),
            random.Random(self.chance.random()),
            plan.clients,
            plan.request_timeout_s,
            self.cluster.gateway_urls,
        )
        started = time.monotonic()
        load.start()
        self._inject(started + plan.seconds, load)
        seconds = time.monotonic() - started
        self.say("no more faults: waiting for running requests")
        wrong = load.finish()
        wrong += self._drain(client)
        verdict = oracle.judge(client, load.outcomes, answers, may_lose=plan.sentinel)
        over_http = judge_http(client, load.http_outcomes, answers, may_lose=plan.sentinel)
        wrong += verdict.wrong + over_http.wrong + self._recover()
        leaks.forget_requests(client)
        after, leaked = leaks.settled(self.cluster, client, before)
        wrong += [f"leak: {leak}" for leak in leaked] + self.cluster.exits.wrong
        wrong += [f"fault {done.kind} failed: {done.error}" for done in self.faults if done.error]
        return Report(
            plan.seed,
            plan.command,
            seconds,
            self.faults,
            load.outcomes,
            verdict,
            load.http_outcomes,
            over_http,
            self.cluster.exits,
            before,
            after,
            load.num_retries,
            wrong,
        )

    def _inject(self, until: float, load: Load) -> None:
        """Inject faults, some of them concurrently, until this time."""
        slots = threading.Semaphore(self.plan.overlap)
        with ThreadPoolExecutor(self.plan.overlap) as pool:
            for number in range(10**9):
                chance = random.Random(f"{self.plan.seed}:{number}")
                if self._wait(until, chance.uniform(0.1, self.plan.gap_s)):
                    break
                if not self.plan.faults:
                    continue
                if chance.random() < PATIENT_SHARE:
                    self._wait_for_tokens(load, until)
                while not slots.acquire(timeout=0.2):
                    pass
                kind = chance.choice(self.plan.faults)
                pool.submit(self._do, kind, chance, slots)
                left = max(0.0, until - time.monotonic())
                asked = len(load.outcomes) + len(load.http_outcomes)
                self.say(f"{left:.0f} s left, {number + 1} faults, {asked} requests; now {kind}")
            self._end.set()

    def _wait(self, until: float, seconds: float) -> bool:
        """Wait; True if the run is over."""
        time.sleep(max(0.0, min(seconds, until - time.monotonic())))
        return time.monotonic() >= until

    def _wait_for_tokens(self, load: Load, until: float) -> None:
        """Wait for tokens, so that the next fault hits running requests."""
        since = time.monotonic()
        deadline = min(until, since + PATIENCE_S)
        while load.last_token < since and time.monotonic() < deadline:
            time.sleep(0.05)

    def _do(self, kind: str, chance: random.Random, slots: threading.Semaphore) -> None:
        attack = Attack(self.cluster, chance, self._end)
        done = Done(kind, time.time())
        self.faults.append(done)
        try:
            FAULTS[kind](attack)
        except Exception as error:  # goes to the report as a failure
            done.error = f"{type(error).__name__}: {error}"
        finally:
            done.until = time.time()
            done.notes = attack.notes
            slots.release()

    # -- after ---------------------------------------------------------------------------------

    def _drain(self, client: redis.Redis) -> list[str]:
        """Wait for requests without a client, because their submission was cut off."""
        try:
            wait_for(
                "every request to end",
                lambda: not client.zcard(keys.open_requests_key()),
                self.plan.request_timeout_s + GRACE_S,
            )
        except AssertionError as error:
            return [str(error)]
        return []

    def _recover(self) -> list[str]:
        """Wait until all workers run."""
        try:
            wait_for("every worker to run, nobody leaving", self.cluster.all_alive, RECOVER_S)
        except AssertionError as error:
            return [str(error)]
        return []

    def _level(self, client: redis.Redis) -> leaks.Level:
        """The level at rest: two equal counts of keys, more than a lease apart."""
        leaks.forget_requests(client)
        last = leaks.measure(self.cluster, client)

        def steady() -> bool:
            nonlocal last
            time.sleep(3)
            last, previous = leaks.measure(self.cluster, client), last
            idle = not any(kind.startswith(("x:", "step")) for kind in last.keys)
            return idle and last.keys == previous.keys

        wait_for("the cluster to be at rest", steady, leaks.SETTLE_S)
        return last
