"""An orchestrator's runtime with a fake Celery consumer, and shards that only hold leases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import redis
from chord_cases import queued
from waiting import wait_for

from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.planning.plan import Plan
from skynet.request.record import Options, Record
from skynet.store.connection import connect
from skynet.store.members import READY, SPARE, Member, Members
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.store.staging import StagingJob
from skynet.store.targets import Target, Targets
from skynet.store.weights import WeightStore
from skynet.wire import keys
from skynet.wire.keys import Address
from skynet.wire.step import Candidates, Part

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "vocab_size": 100,
    "eos_token_id": 2,
}
MakeRuntime = Callable[[], OrchestratorRuntime]
TARGET = Target("d", "tiny", "float32", "auto", 8, 64, 2, 2, fixed=True)


class Consumer:
    """A fake of Celery's consumer with its queues."""

    event_dispatcher = None

    def __init__(self) -> None:
        self.queues: set[str] = set()
        self.timer = self

    def call_repeatedly(self, every_s: float, what: Any) -> None:
        """The tests tick by themselves."""

    def add_task_queue(self, queue: str) -> None:
        self.queues.add(queue)

    def cancel_task_queue(self, queue: str) -> None:
        self.queues.discard(queue)


class Shards:
    """Shard workers as Redis sees them."""

    def __init__(self, url: str) -> None:
        self.client = connect(url, single_connection=True)
        self.members = Members(self.client, 60)
        self.plans = Plans(self.client)
        self.live: dict[str, Member] = {}

    def join(self, name: str, pinned: str = "") -> None:
        member = Member(name, f"{name}@here", "", "here", 7, SPARE, pinned, cores=2, speed=5e9)
        self.live[name] = member
        self.members.renew(member)

    def join_all(self, stages: int = 2, shards: int = 2) -> None:
        """One for each address, bound to it and called after it."""
        for stage in range(stages):
            for shard in range(shards):
                self.join(str(Address(stage, shard)), str(Address(stage, shard)))

    def die(self, name: str) -> None:
        del self.live[name]
        self.members.leave(name)

    def follow(self) -> None:
        """All take their place in the plan in force, and have loaded the next plan."""
        force, following = (text and Plan.from_json(text) for text in self.plans.texts())
        for member in self.live.values():
            if force:
                place = force.placed().get(member.id)
                member.address = member.queue = str(Address(*place)) if place else ""
                member.epoch, member.state = force.epoch, READY if place else SPARE
            if following:
                member.prepared = following.epoch
            self.members.renew(member)

    def close(self) -> None:
        self.client.close()


def stage_model(client: redis.Redis, digest: str = "d") -> None:
    """A model without weights: the orchestrator needs its config only."""
    WeightStore(client).stage(StagingJob(digest, "tiny", CONFIG, {}, {}, None, 4096))  # type: ignore[arg-type]


def ask(client: redis.Redis, **changes: Any) -> Target:
    return Targets(client).ask(replace(TARGET, **changes))


def submit(
    client: redis.Redis,
    name: str,
    model: str = "",
    timeout_s: float = 100,
    prompt: tuple[int, ...] = (1, 5, 7),
    **options: Any,
) -> None:
    """Write a request's record; its message is lost."""
    requests = Requests(client, 1000)
    now = requests.clock.now(exact=True)
    chosen = Options(**{"max_tokens": 3, **options})
    record = Record(name, prompt, chosen, now, now + timeout_s, model=model)
    requests.create(record)


def beat(runtime: OrchestratorRuntime) -> None:
    """One renewal, as the lease's thread makes them."""
    runtime.election.renew(runtime.context.client)


def watch(runtime: OrchestratorRuntime) -> None:
    """A tick at which everything is due."""
    runtime.intervals.clear()
    if runtime.leader.service is not None:
        runtime.leader.service.plan_controller._looked = 0.0
    runtime.tick()


def bring_up(runtime: OrchestratorRuntime, shards: Shards) -> Plan:
    """Tick until the engine has a plan that all shards have taken."""

    def is_ready() -> bool:
        watch(runtime)
        shards.follow()
        watch(runtime)
        service = runtime.leader.service
        if service is None:
            return False
        switch = service.plan_controller.switch
        return service.engine.ready and switch.next is None and not switch.broken

    wait_for("the engine is ready", is_ready)
    plan = Plans(shards.client).current()
    service = runtime.leader.service
    if plan is None or service is None or service.engine.plan.epoch != plan.epoch:
        raise AssertionError(f"the engine runs another plan than {plan}")
    return plan


def sent_steps(client: redis.Redis) -> list[tuple[int, int]]:
    """(epoch, step) of the messages in the first shard's queue, which is empty then."""
    return [tuple(message["body"][0][:2]) for message in queued(client, "stage0.shard0")]


def parts(token: int, num_shards: int = 2) -> list[bytes]:
    """The shards' candidates for one row: the token from the first shard only."""
    best = Candidates(np.array([token], np.int32), np.array([1.0], np.float32), 1.0, 1.0)
    none = Candidates(np.empty(0, np.int32), np.empty(0, np.float32), 0.0, 0.0)
    candidates = [best] + [none] * (num_shards - 1)
    return [Part(candidates=[shard], compute_s=0.001).encode() for shard in candidates]


def in_queue(client: redis.Redis, queue: str = keys.ORCHESTRATOR_QUEUE) -> list[list[Any]]:
    """[task, arguments] of the messages in a queue, which is empty then."""
    return [[m["headers"]["task"], m["body"][0]] for m in queued(client, queue)]
