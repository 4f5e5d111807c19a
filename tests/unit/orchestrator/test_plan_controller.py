"""From one plan to the next: prepared beside the one in force, or at once when that is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from skynet.engine.engine import Engine
from skynet.errors import Fenced
from skynet.models.registry import load_architecture
from skynet.orchestrator.membership import Membership
from skynet.orchestrator.plan_controller import CALM_S, PlanController
from skynet.orchestrator.target_plans import TargetPlans
from skynet.planning.plan import Plan
from skynet.store.members import READY, SPARE, Member, Members
from skynet.store.plans import Plans
from skynet.store.targets import Target
from skynet.wire.keys import Address

ARCH = load_architecture(
    {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "vocab_size": 1000,
    }
)
TARGET = Target("digest", "tiny", "float32", "auto", 4, 64, 1, 2, fixed=True, revision=1)
TICK_S = 0.3


class FakePlans:
    """The plans written, in order; a fence that is not the leader's is refused."""

    def __init__(self) -> None:
        self.epoch = 0
        self.plan: Plan | None = None
        self.log: list[tuple[str, Plan]] = []
        self.rebalance = False
        self.leader = "1:me"
        self.next: Plan | None = None

    def current(self) -> Plan | None:
        return self.plan

    def take_rebalance(self) -> bool:
        asked, self.rebalance = self.rebalance, False
        return asked

    def number(self, plan: Plan, fence: str, known: int = 0) -> Plan:
        self._check(fence)
        self.epoch = max(self.epoch, known) + 1
        return plan.with_epoch(self.epoch)

    def publish(self, plan: Plan, fence: str, before: Plan | None = None) -> None:
        self._check(fence)
        if before != self.plan:
            raise AssertionError(f"the plan in force is {self.plan}, not {before}")
        self.plan, self.next = plan, None
        self.log.append(("publish", plan))

    def prepare(self, plan: Plan, fence: str) -> None:
        self._check(fence)
        self.log.append(("prepare", plan))
        self.next = plan

    def forget_next(self, fence: str) -> None:
        self._check(fence)
        self.next = None

    def restore(self, plan: Plan, following: Plan | None, fence: str) -> bool:
        return False

    def _check(self, fence: str) -> None:
        if fence != self.leader:
            raise Fenced("another orchestrator leads")


class FakeEngine:
    """Counts the calls; `busy`: a step is in flight."""

    def __init__(self) -> None:
        self.ready = self.busy = self.draining = False
        self.resumed: list[Plan] = []
        self.suspended = self.hurried = self.blamed = 0

    def drain(self) -> bool:
        self.draining = True
        return not self.busy

    def go_on(self) -> None:
        self.draining = False

    def suspend(self) -> None:
        self.ready = self.busy = False
        self.suspended += 1

    def resume(self, plan: Plan) -> None:
        self.ready, self.draining = True, False
        self.resumed.append(plan)

    def hurry(self) -> None:
        self.hurried += 1

    def blame_loss(self) -> None:
        self.blamed += 1


class Stand:
    """A plan controller on fakes, with a clock that stands still until `tick`."""

    def __init__(self, target: Target = TARGET, plans: FakePlans | None = None) -> None:
        self.now = 100.0
        self.leases: dict[str, Member] = {}
        self.events: list[tuple[str, str]] = []
        self.plans, self.engine = plans or FakePlans(), FakeEngine()
        self.membership = Membership(cast(Members, self), lambda *event: None, self.monotonic)
        self.plan_controller = PlanController(
            cast(Plans, self.plans),
            self.membership,
            cast(Engine, self.engine),
            TargetPlans(ARCH, target),
            lambda: "1:me",
            lambda kind, text, seconds: self.events.append((kind, text)),
        )

    # -- the clock and the leases --------------------------------------------------------------

    def monotonic(self) -> float:
        return self.now

    def all(self) -> list[Member]:
        return list(self.leases.values())

    def broken(self, members: list[Member]) -> set[str]:
        return set()

    # -- what happens --------------------------------------------------------------------------

    def join(self, *names: str, **fields: Any) -> None:
        for name in names:
            made = {"state": SPARE, "speed": 5e9, "cores": 1, "free_bytes": 2**40, **fields}
            joined = 1.0 + len(self.leases)
            self.leases[name] = Member(name, name, "", name, 7, joined=joined, **made)

    def take(self, *names: str) -> None:
        """These have taken the plan in force, all by default."""
        plan = self.plans.plan
        placed = plan.placed() if plan else {}
        for name in names or tuple(self.leases):
            member, place = self.leases[name], placed.get(name)
            address = str(Address(*place)) if place else ""
            self.leases[name] = replace(
                member,
                address=address,
                queue=address,
                epoch=plan.epoch if plan else 0,
                state=READY if place else SPARE,
            )

    def prepared(self, *names: str) -> None:
        """These workers have loaded the plan in preparation, all by default."""
        for name in names or tuple(self.leases):
            member = self.leases[name]
            self.leases[name] = replace(member, prepared=self.plans.epoch)

    def tick(self, count: int = 1, after_s: float = TICK_S) -> None:
        for _ in range(count):
            self.now += after_s
            self.plan_controller.tick()

    def up(self) -> Plan:
        """Tick until the engine runs the plan in force."""
        for _ in range(30):
            self.tick()
            self.take()
            self.tick()
            if self.engine.ready and self.plans.plan == self.engine.resumed[-1]:
                return self.engine.resumed[-1]
        raise AssertionError(f"no plan: {self.plan_controller.status()}")

    @property
    def written(self) -> list[tuple[str, int]]:
        return [(what, plan.epoch) for what, plan in self.plans.log]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.fixture
def stand() -> Stand:
    """For 1x2, which is fixed, with two workers."""
    stand = Stand()
    stand.join("a", "b")
    return stand


def test_a_plan_is_put_in_force_and_runs_when_all_have_taken_it(stand: Stand) -> None:
    # Given two workers for two places
    stand.tick()
    # Then the plan is in force, and the engine waits for both
    assert stand.written == [("publish", 1)]
    assert stand.plan_controller.status()["state"].startswith("waiting for stage0.shard0")
    stand.take("a")
    stand.tick()
    assert stand.plan_controller.status()["waits"] == ["stage0.shard1 (spare)"]
    assert stand.engine.resumed == []
    # When both have it / Then it runs
    stand.take()
    stand.tick()
    assert [plan.workers for plan in stand.engine.resumed] == [("a", "b")]
    assert stand.plan_controller.status()["state"] == "ready"
    assert stand.kinds == ["plan", "ready"]
    # And nothing more is written while nothing changes
    stand.tick(20)
    assert stand.written == [("publish", 1)]


def test_a_leaving_worker_hands_over_at_a_step_boundary(stand: Stand) -> None:
    # Given a plan that runs, with a spare
    stand.join("c")
    stand.up()
    # When one is told to leave
    stand.leases["b"].leaving = True
    stand.tick()
    # Then the next plan is prepared, and steps go on meanwhile
    assert stand.written[-1] == ("prepare", 2)
    assert stand.engine.ready
    stand.engine.busy = True
    stand.tick(5)
    assert not stand.engine.draining
    assert stand.plan_controller.status()["state"] == "ready, preparing plan 2"
    # And when all have loaded it, the step in flight is waited for
    stand.prepared()
    stand.tick(5)
    assert stand.engine.draining
    assert stand.written[-1] == ("prepare", 2)
    # And then it is in force under the number that it was prepared under
    stand.engine.busy = False
    stand.tick()
    assert stand.written[-1] == ("publish", 2)
    assert stand.plans.plan is not None
    assert stand.plans.plan.workers == ("a", "c")
    stand.take()
    stand.tick()
    assert stand.engine.resumed[-1].epoch == 2


def test_a_loss_in_mid_preparation_does_not_wait_for_it(stand: Stand) -> None:
    # Given a plan in preparation that no worker has loaded
    stand.join("c", "d")
    stand.up()
    stand.leases["b"].leaving = True
    stand.engine.busy = True
    stand.tick()
    assert stand.written[-1] == ("prepare", 2)
    # When a worker of the plan in force dies
    del stand.leases["a"]
    stand.tick()
    # Then another plan is in force at once, though steps are in flight, under a new epoch
    assert stand.written[-1] == ("publish", 3)
    assert stand.plans.plan is not None
    assert set(stand.plans.plan.workers) == {"c", "d"}
    assert not stand.engine.ready


def test_a_boundary_that_is_not_needed_any_more_is_given_up(stand: Stand) -> None:
    # Given a fall-back to one shard, and a second worker that came, for which steps are drained
    stand.plan_controller.follow(replace(TARGET, fixed=False))
    stand.up()
    del stand.leases["b"]
    assert stand.up().shape == (1, 1)
    stand.join("c")
    stand.engine.busy = True
    stand.tick()
    stand.prepared()
    stand.tick()
    assert stand.engine.draining
    before = stand.written
    # When it dies before the last step is done
    del stand.leases["c"]
    stand.tick()
    # Then the plan in force goes on
    assert not stand.engine.draining
    assert stand.engine.ready
    assert stand.plan_controller.switch.next is None
    assert stand.written == before


def test_a_lost_place_is_waited_for_under_its_name(stand: Stand) -> None:
    # Given a plan that runs
    stand.up()
    # When a worker is gone, without a replacement
    del stand.leases["b"]
    stand.tick()
    # Then no step is sent, and the status names the missing shard
    assert not stand.engine.ready
    assert stand.plan_controller.status()["state"] == "waiting for stage0.shard1"
    assert stand.written == [("publish", 1)]
    # And when another comes, it gets a new epoch
    stand.join("c")
    plan = stand.up()
    assert (plan.epoch, plan.workers) == (2, ("a", "c"))
    assert "lost stage0.shard1" in stand.events[-2][1]


def test_a_lost_step_is_a_new_epoch_of_the_same_plan(stand: Stand) -> None:
    # Given a plan that runs
    old = stand.up()
    # When the engine has lost a step, and with it the shards' slots
    stand.engine.suspend()
    stand.plan_controller.step_failed("step 7 was not done within 3.0 s")
    new = stand.up()
    # Then the same workers go on under the next epoch, and the cause is reported
    assert (new.epoch, new.workers, new.stages) == (2, old.workers, old.stages)
    causes = [text for kind, text in stand.events if kind == "plan"]
    assert "step 7 was not done" in causes[-1]


def test_losing_step_after_step_waits_longer_each_time(stand: Stand) -> None:
    # Given a plan whose steps are lost as soon as it runs
    stand.up()
    waited = []
    for _ in range(4):
        stand.engine.suspend()
        stand.plan_controller.step_failed("a step was lost")
        began, epoch = stand.now, stand.plans.epoch
        while stand.plans.epoch == epoch:
            stand.tick(after_s=0.06)
        waited.append(stand.now - began)
        stand.take()
        stand.tick(after_s=0.06)
        assert stand.engine.ready
    # Then the first attempt comes at once, and each other one later than the one before
    assert waited[0] < 0.1
    assert waited == sorted(waited)
    assert waited[-1] > 4 * waited[1] / 2
    # And after a calm time the next comes at once again
    stand.tick(after_s=CALM_S)
    stand.engine.suspend()
    stand.plan_controller.step_failed("a step was lost")
    epoch = stand.plans.epoch
    stand.tick()
    assert stand.plans.epoch == epoch + 1


def test_a_new_leader_takes_a_new_epoch() -> None:
    # Given a plan that another leader has put in force, with its workers
    first = Stand()
    first.join("a", "b")
    old = first.up()
    second = Stand(plans=first.plans)
    second.leases = first.leases
    # When this one begins to lead
    new = second.up()
    # Then the same workers go on, under an epoch that makes all messages on their way stale
    assert (new.workers, new.stages) == (old.workers, old.stages)
    assert new.epoch > old.epoch
    assert "a new leader" in second.events[0][1]


def test_another_shape_of_the_same_model_waits_for_the_boundary(stand: Stand) -> None:
    # Given a plan that runs, with a step in flight
    stand.up()
    stand.engine.busy = True
    # When two stages of one shard are asked for
    stand.plan_controller.follow(replace(TARGET, stages=2, shards=1, revision=2))
    stand.tick(3)
    # Then the step ends first
    assert stand.engine.ready
    assert stand.engine.draining
    stand.engine.busy = False
    plan = stand.up()
    assert plan.shape == (2, 1)
    assert plan.revision == 2


def test_a_small_gain_is_taken_only_when_it_is_asked_for(stand: Stand) -> None:
    # Given any shape, a plan for one worker, and a second one that would gain little
    slow: dict[str, Any] = {"speed": 1.9e8}
    stand.leases.clear()
    stand.join("a", **slow)
    stand.plan_controller.follow(replace(TARGET, stages=None, shards=None, fixed=False, revision=2))
    assert stand.up().shape == (1, 1)
    stand.join("b", **slow)
    stand.tick(5)
    # Then it is not worth a pause, and the status has the numbers
    assert stand.written == [("publish", 1)]
    assert "not worth it, 1 spare" in stand.plan_controller.status()["reason"]
    # When a rebalance is requested / Then it is prepared, and the request is cleared
    stand.plans.rebalance = True
    stand.tick()
    assert stand.written == [("publish", 1), ("prepare", 2)]
    assert not stand.plans.rebalance


def test_a_small_gain_that_was_asked_for_is_put_in_force(stand: Stand) -> None:
    # Given a small gain that is being prepared after a request to rebalance
    slow: dict[str, Any] = {"speed": 1.9e8}
    stand.leases.clear()
    stand.join("a", **slow)
    stand.plan_controller.follow(replace(TARGET, stages=None, shards=None, fixed=False, revision=2))
    stand.up()
    stand.join("b", **slow)
    stand.plans.rebalance = True
    stand.tick(3)
    # When all have loaded it / Then it is in force
    stand.prepared()
    stand.tick()
    assert stand.written == [("publish", 1), ("prepare", 2), ("publish", 2)]


def test_a_large_gain_is_taken_at_once(stand: Stand) -> None:
    # Given any shape, and a plan for one slow worker
    slow: dict[str, Any] = {"speed": 1e7}
    stand.leases.clear()
    stand.join("a", **slow)
    stand.plan_controller.follow(replace(TARGET, stages=None, shards=None, fixed=False, revision=2))
    assert stand.up().shape == (1, 1)
    # When another comes / Then the shape for both is prepared beside it
    stand.join("b", **slow)
    stand.tick()
    assert stand.written == [("publish", 1), ("prepare", 2)]
    assert stand.engine.ready
    assert "1x2 would take" in stand.plan_controller.status()["reason"]


def test_a_worker_that_connects_again_makes_the_engine_hurry(stand: Stand) -> None:
    # Given a plan that runs
    stand.up()
    assert stand.engine.hurried == 0
    # When a worker comes back over another connection
    stand.leases["a"] = replace(stand.leases["a"], connection=9)
    stand.tick()
    # Then the deadlines of steps in flight are shortened, once
    assert stand.engine.hurried == 1
    stand.tick(3)
    assert stand.engine.hurried == 1


def test_a_replay_is_told_with_its_size(stand: Stand) -> None:
    # When all sequences are computed again
    stand.plan_controller.replayed(3, 120, 0.25)
    # Then an event says so, with the number of requests and tokens
    assert stand.events == [("replay", "3 requests, 120 tokens in 0.25 s; since it was noticed")]


def test_a_deposed_leader_cannot_put_a_plan_in_force(stand: Stand) -> None:
    # Given a plan controller whose lease has passed to another
    stand.plans.leader = "2:other"
    # When it would put a plan in force / Then it is refused, and has written nothing
    with pytest.raises(Fenced):
        stand.tick()
    assert stand.written == []


def test_epochs_do_not_restart_when_redis_has_lost_them(stand: Stand) -> None:
    # Given workers that know of an epoch which Redis does not
    for name in ("a", "b"):
        stand.leases[name] = replace(stand.leases[name], epoch=41)
    # When a plan is made
    stand.tick()
    # Then its epoch is later
    assert stand.plans.plan is not None
    assert stand.plans.plan.epoch == 42


AUTO = replace(TARGET, fixed=False, weight_dtype="bfloat16", gpu_dtype="bfloat16")


@pytest.mark.parametrize(
    ("devices", "dtype"),
    [(("cpu", "cpu"), "float32"), (("cuda", "cpu"), "float32"), (("cuda", "cuda:1"), "bfloat16")],
)
def test_the_members_devices_decide_what_is_computed_in(
    devices: tuple[str, str], dtype: str
) -> None:
    # Given a target that has a dtype for GPUs
    stand = Stand(AUTO)
    # When its members are these
    for name, device in zip("ab", devices, strict=True):
        stand.join(name, device=device)
    # Then the plan is in their dtype
    assert stand.up().dtype == dtype


def test_a_target_without_a_dtype_for_gpus_has_one_dtype() -> None:
    stand = Stand(replace(AUTO, gpu_dtype=None))
    stand.join("a", "b", device="cuda")
    assert stand.up().dtype == "float32"


def test_whoever_joins_or_leads_later_computes_in_the_dtype_of_the_first_plan() -> None:
    # Given a plan of GPUs
    stand = Stand(AUTO)
    stand.join("a", "b", device="cuda")
    assert stand.up().dtype == "bfloat16"
    # When a CPU takes the place of a lost one
    stand.join("c")
    del stand.leases["b"]
    # Then running requests keep their dtype
    after = stand.up()
    assert (after.workers, after.dtype) == (("a", "c"), "bfloat16")
    # And with a new leader, too
    other = Stand(AUTO, stand.plans)
    other.leases = stand.leases
    assert other.up().dtype == "bfloat16"
    # But the next target is decided anew
    other.plan_controller.follow(replace(AUTO, revision=2))
    assert other.up().dtype == "float32"
