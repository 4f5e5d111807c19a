"""One run: start, learn the undisturbed answers, attack under load, judge."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import redis

from skynet.client import Client
from skynet.models.checkpoint import open_checkpoint
from skynet.settings import settings
from skynet.splitting import skysplit
from tests.chaos import leaks, oracle
from tests.chaos.cases import greedy_answers, make_cases, stopped_cases
from tests.chaos.cluster import ChaosCluster
from tests.chaos.faults import FAULTS, Attack
from tests.chaos.load import Case, Load
from tests.chaos.report import Done, Report
from tests.cluster.processes import wait_for

READY_S = 180.0
RECOVER_S = 120.0
WARM_ROUNDS = 3
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do.

    gap_s: between one fault and the next, at most; overlap: so many faults at a time, at most.
    most_tokens: of the longest answer.
    """

    seed: int
    command: str
    model: Path
    seconds: float
    stages: int
    shards: int
    spares: int
    orchestrators: int
    pinned: bool
    faults: tuple[str, ...]
    clients: int
    gap_s: float
    overlap: int
    request_timeout_s: float
    most_tokens: int
    chord_span: str


class WarmupFailed(Exception):
    """The undisturbed cluster already answers wrongly, so an attack would prove nothing."""


class Run:
    """One run in `directory`, which keeps its logs."""

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
            pinned=plan.pinned,
            environment={},
        )
        self._end = threading.Event()

    def __call__(self) -> Report:
        """Do it all.

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

    # -- the undisturbed answers ---------------------------------------------------------------

    def _warm_up(self) -> dict[Case, list[int]]:
        plan = self.plan
        skysplit(
            str(plan.model),
            plan.stages,
            plan.shards,
            dtype="float32",
            chord_span=plan.chord_span,
            num_slots=max(4, plan.clients - 2),  # fewer than clients: some wait for a slot
            url=self.cluster.server.url,
        )
        vocab_size = int(
            open_checkpoint(str(plan.model), settings().cache_dir).config["vocab_size"]
        )
        cases = make_cases(self.chance, vocab_size, plan.most_tokens)
        client = Client(self.cluster.server.url)
        try:
            client.submit_prompt([1], max_tokens=2, timeout=READY_S).get()
            self._wait_until_whole()
            found = self._ask_alone(client, cases)
            self._compare(found)
            found.update(self._ask_alone(client, stopped_cases(self.chance, found)))
            for _ in range(WARM_ROUNDS):  # all at once: the most that workers hold undisturbed
                self._ask_together(client, {case: ids for case, (ids, _) in found.items()})
        finally:
            client.close()
        return {case: ids for case, (ids, _) in found.items()}

    def _ask_alone(
        self, client: Client, cases: Sequence[Case]
    ) -> dict[Case, tuple[list[int], str]]:
        found = {}
        for number, case in enumerate(cases):
            self.say(f"undisturbed answer {number + 1} of {len(cases)}")
            completion = client.submit_prompt(case.prompt, **case.options).get(timeout=READY_S)
            found[case] = (completion.token_ids, completion.text)
        return found

    def _ask_together(self, client: Client, answers: dict[Case, list[int]]) -> None:
        asked = [(c, client.submit_prompt(c.prompt, **c.options)) for c in answers for _ in "12"]
        for case, generation in asked:
            found = generation.get(timeout=READY_S).token_ids
            wrong = oracle.difference(found, answers[case])
            if wrong:
                raise WarmupFailed(f"{case} differs when asked together with others: {wrong}")

    def _compare(self, found: dict[Case, tuple[list[int], str]]) -> None:
        """The greedy answers are those of Transformers in one process."""
        self.say("Transformers' own answers")
        for case, expected in greedy_answers(self.plan.model, list(found)).items():
            wrong = oracle.difference(found[case][0], expected)
            if wrong:
                raise WarmupFailed(f"{case} is not what Transformers answers: {wrong}")

    def _wait_until_whole(self) -> None:
        wait_for("every worker to run", self.cluster.all_alive, READY_S)

    # -- the attack ----------------------------------------------------------------------------

    def _attack(
        self, client: redis.Redis, answers: dict[Case, list[int]], before: leaks.Level
    ) -> Report:
        plan = self.plan
        load = Load(
            self.cluster.server.url,
            list(answers),
            random.Random(self.chance.random()),
            plan.clients,
            plan.request_timeout_s,
        )
        started = time.monotonic()
        load.start()
        self._inject(started + plan.seconds, load)
        seconds = time.monotonic() - started
        self.say("no more faults: waiting for what runs")
        wrong = load.finish()
        verdict = oracle.judge(client, load.outcomes, answers)
        wrong += verdict.wrong + self._recover()
        leaks.forget_requests(client)
        after, found = leaks.settled(self.cluster, client, before)
        wrong += [f"leak: {leak}" for leak in found] + self.cluster.exits.wrong
        wrong += [f"fault {done.kind} failed: {done.error}" for done in self.faults if done.error]
        return Report(
            plan.seed,
            plan.command,
            seconds,
            self.faults,
            load.outcomes,
            verdict,
            self.cluster.exits,
            before,
            after,
            load.num_retries,
            wrong,
        )

    def _inject(self, until: float, load: Load) -> None:
        """Faults, one after the other and sometimes at the same time, until then."""
        slots = threading.Semaphore(self.plan.overlap)
        with ThreadPoolExecutor(self.plan.overlap) as pool:
            for number in range(10**9):
                chance = random.Random(f"{self.plan.seed}:{number}")
                if self._wait(until, chance.uniform(0.1, self.plan.gap_s)):
                    break
                if not self.plan.faults:
                    continue
                while not slots.acquire(timeout=0.2):
                    pass
                kind = chance.choice(self.plan.faults)
                pool.submit(self._do, kind, chance, slots)
                left = max(0.0, until - time.monotonic())
                asked = len(load.outcomes)
                self.say(f"{left:.0f} s left, {number + 1} faults, {asked} requests; now {kind}")
            self._end.set()

    def _wait(self, until: float, seconds: float) -> bool:
        """Let time go by; True when the run is over."""
        time.sleep(max(0.0, min(seconds, until - time.monotonic())))
        return time.monotonic() >= until

    def _do(self, kind: str, chance: random.Random, slots: threading.Semaphore) -> None:
        attack = Attack(self.cluster, chance, self._end)
        done = Done(kind, time.time())
        self.faults.append(done)
        try:
            FAULTS[kind](attack)
        except Exception as error:  # told in the report, and counted as wrong
            done.error = f"{type(error).__name__}: {error}"
        finally:
            done.until = time.time()
            done.notes = attack.notes
            slots.release()

    # -- after ---------------------------------------------------------------------------------

    def _recover(self) -> list[str]:
        """All workers there again, and a request answered."""
        try:
            wait_for("every worker to run, nobody leaving", self.cluster.all_alive, RECOVER_S)
        except AssertionError as error:
            return [str(error)]
        return []

    def _level(self, client: redis.Redis) -> leaks.Level:
        """At rest: two equal counts of keys, one lease apart."""
        leaks.forget_requests(client)
        last = leaks.measure(self.cluster, client)

        def steady() -> bool:
            nonlocal last
            time.sleep(3)
            last, previous = leaks.measure(self.cluster, client), last
            calm = not any(kind.startswith(("x:", "skynet:step")) for kind in last.keys)
            return calm and last.keys == previous.keys

        wait_for("the cluster to be at rest", steady, leaks.SETTLE_S)
        return last
