"""Running requests while the cluster is disturbed, and checks of their answers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from processes import wait_for

from skynet.client.generation import Generation
from skynet.local.cluster import LocalCluster
from skynet.store.events import Event, Events
from skynet.store.members import Member, Members
from skynet.wire import keys

LONG = 300  # tokens: an answer takes longer than it takes to disturb it
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 11}
# Three letters that are not among some, then one that is: it has no alternative.
STRUCTURED: dict[str, Any] = {"structured_outputs": {"regex": "([^\u4e05-\u4e30]{3}\u4e40){200}"}}


@dataclass
class Answers:
    """Requests, their undisturbed answers, and the tokens that readers of their streams saw."""

    cluster: LocalCluster
    generations: list[Generation]
    expected: list[list[int]]
    streamed: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    readers: list[threading.Thread] = field(default_factory=list)

    def read(self) -> None:
        """Follow every stream in a thread each."""

        def follow(generation: Generation) -> None:
            seen = self.streamed[generation.id] = []
            for token in generation.tokens(timeout=90):
                seen.append((token.index, token.id))

        for generation in self.generations:
            reader = threading.Thread(target=follow, args=(generation,), daemon=True)
            reader.start()
            self.readers.append(reader)

    def check(self) -> None:
        """Every answer is the undisturbed one; readers saw each token once, in order."""
        for generation, expected in zip(self.generations, self.expected, strict=True):
            assert generation.get(timeout=90).token_ids == expected
        for reader in self.readers:
            reader.join(60)
        for generation, expected in zip(self.generations, self.expected, strict=True):
            assert self.streamed[generation.id] == list(enumerate(expected))
            assert one_end(self.cluster, generation)


def one_end(cluster: LocalCluster, generation: Generation) -> bool:
    """Is there exactly one terminal event in the request's stream?"""
    entries = cluster.client.redis.xrange(keys.tokens_key(generation.id))
    ends = [fields for _, fields in entries if b"end" in fields]  # type: ignore[union-attr]
    return len(ends) == 1


class Undisturbed:
    """Long undisturbed answers to some prompts: greedy, sampled and by a grammar."""

    def __init__(self, cluster: LocalCluster, prompts: list[list[int]]) -> None:
        self.cluster = cluster
        first, second, *others = prompts
        self.requests = [(first, {}), (second, STRUCTURED), (first, SAMPLED)]
        self.requests += [(prompt, {}) for prompt in others]
        generations = [cluster.submit_prompt(p, max_tokens=LONG, **o) for p, o in self.requests]
        self.answers = [generation.get(timeout=90).token_ids for generation in generations]

    def ask(self, times: int = 1) -> Answers:
        """Submit all again, with a reader each; the first ones have tokens on return."""
        generations = [
            self.cluster.submit_prompt(prompt, max_tokens=LONG, **options)
            for _ in range(times)
            for prompt, options in self.requests
        ]
        answers = Answers(self.cluster, generations, self.answers * times)
        answers.read()
        slots = self.cluster.plan.num_slots if self.cluster.plan else 1
        for generation in generations[:slots]:
            next(generation.tokens(timeout=60))
        return answers


def engine_state(cluster: LocalCluster) -> dict[str, object]:
    """The state that the leading orchestrator last wrote."""
    text = cluster.client.redis.get(keys.engine_key())
    return dict(json.loads(text)) if isinstance(text, bytes) else {}


def members(cluster: LocalCluster) -> list[Member]:
    return Members(cluster.client.redis, 3).all()


def leader_pid(cluster: LocalCluster) -> int:
    return wait_for(
        "a leader", lambda: next((m.pid for m in members(cluster) if m.state == "leading"), 0)
    )


def name_of(cluster: LocalCluster, pid: int) -> str:
    return next(worker.address for worker in cluster.workers if worker.pid == pid)


def worker_with_a_place(cluster: LocalCluster) -> str:
    """The name of a worker with a place in the plan."""
    placed = sorted((m.address, m.pid) for m in members(cluster) if m.address.startswith("stage"))
    return name_of(cluster, placed[-1][1])


def kill(cluster: LocalCluster, name: str) -> None:
    """SIGKILL, and wait until the process has ended."""
    os.kill(cluster.processes.pid_of(name), signal.SIGKILL)
    wait_for(f"{name} to die", lambda: name in cluster.processes.failed())


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP during the block, SIGCONT afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def heal(cluster: LocalCluster) -> None:
    """Restart workers that ended, and wait until the cluster is whole."""
    for name in cluster.processes.failed():
        cluster.processes.restart(name)
    whole(cluster)


def whole(cluster: LocalCluster) -> None:
    """Wait until every process is a member and the plan has the requested shape."""
    shape = cluster.plan.shape if cluster.plan else (1, 1)

    def is_whole() -> bool:
        present = members(cluster)
        placed = {m.address for m in present if m.state == "ready"}
        return (
            {m.pid for m in present} == {worker.pid for worker in cluster.workers}
            and all(m.speed for m in present if m.address != "orchestrator")
            and len(placed) == shape[0] * shape[1]
            and engine_state(cluster).get("state") == "ready"
        )

    wait_for("the cluster to be whole", is_whole)


def events_since(cluster: LocalCluster, count: int) -> list[Event]:
    """Events after the first `count`."""
    return Events(cluster.client.redis).latest(400)[count:]


def num_events(cluster: LocalCluster) -> int:
    return len(Events(cluster.client.redis).latest(400))


def longest_pause(generation: Generation, disturb: Callable[[], object]) -> float:
    """The longest time between two tokens of a stream while `disturb` runs."""
    last, longest = time.monotonic(), 0.0
    done = threading.Thread(target=disturb, daemon=True)
    done.start()
    for _ in generation.tokens(timeout=90):
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    done.join()
    return longest
