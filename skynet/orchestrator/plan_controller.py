"""Which plan is in force, and the way from one to the next: the leading orchestrator's half.

One path for every cause, be it a loss, a join, a leave, a lost step or a new leader: a new epoch,
missing tiles, replay. Only its beginning differs: where the plan in force still works, the next
one is prepared beside it and put in force at a step boundary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from skynet.architecture.architecture import Architecture
from skynet.engine.engine import Engine
from skynet.errors import PlanError
from skynet.orchestrator.membership import Membership
from skynet.planning.placement import Decision, Planner, Wish
from skynet.planning.plan import Plan
from skynet.planning.split import PlanOptions, make_plan
from skynet.store.plans import Plans, Target

logger = logging.getLogger(__name__)

LOOK_S = 0.25  # between looks at the members, while all is well
FAST_LOOK_S = 0.05  # while something is under way
CALM_S = 5.0  # losses of steps in so short a time make the next attempt wait
MAX_WAIT_S = 4.0


class PlanController:
    """Keeps `engine` on a plan that can run, for one target.

    fence: of the leader; every write carries it.
    tell: called with (kind, text, seconds) of everything that people should know.
    """

    def __init__(
        self,
        plans: Plans,
        membership: Membership,
        engine: Engine,
        arch: Architecture,
        target: Target,
        fence: Callable[[], str],
        tell: Callable[[str, str, float], None],
    ) -> None:
        self.plans = plans
        self.membership = membership
        self.engine = engine
        self.target = target
        self.fence = fence
        self.tell = tell
        self.arch = arch
        self.reason = "starting"
        self.waits: list[str] = []
        self.plan = plans.current()  # in force, maybe another leader's
        self.next: Plan | None = None  # being prepared
        self._next_reason = ""
        self.switching = False  # published, and not all are ready
        self.broken = "a new leader" if self.plan is not None else ""
        self._planner = self._make_planner()
        self._looked = 0.0
        self._lost_since = 0.0
        self._began = time.monotonic()  # of the preparation or the switch
        self._noticed = time.monotonic()  # when what is being recovered from was noticed
        self._failures: list[float] = []

    @property
    def epoch(self) -> int:
        """Of the plan in force; 0 if there is none."""
        return self.plan.epoch if self.plan is not None else 0

    def follow(self, target: Target) -> None:
        """The same model is asked for in another way."""
        self.target = target
        self._planner = self._make_planner()

    def step_failed(self, cause: str) -> None:
        """The plan in force has lost a step, or what the shards knew: it needs a new epoch."""
        if not self.broken:
            self.broken = cause
            self._noticed = time.monotonic()

    def tick(self) -> None:
        """Look after the members and the plan; often."""
        steady = self.engine.ready and self.next is None and not self.broken
        now = time.monotonic()
        if now - self._looked < (LOOK_S if steady else FAST_LOOK_S):
            return
        self._looked = now
        self.membership.look()
        if self.membership.reconnected:
            # What was on its way to whoever lost its connection may be lost with it.
            self.membership.reconnected = False
            self.engine.hurry()
        if self.switching and not self.broken:
            self._finish_switch()
        decision = self._decide()
        if self.next is not None and self._may_go_on(self.next, decision):
            decision = Decision(self._next_reason, self.next, prepare=True)
        self.reason = decision.reason
        if decision.plan is not None:
            self._go(decision)
        elif self._is_lost():
            self._forget_next()
            if self.engine.ready:
                self._suspend(f"lost {', '.join(decision.missing)}")
        elif self.broken and self.plan is not None and self._fits(self.plan):
            self._go(Decision(self.broken, self.plan))
        else:
            self._forget_next()  # what it was made for has passed
            self.engine.go_on()
        self.waits = list(decision.missing) or self._waits()

    def _may_go_on(self, plan: Plan, decision: Decision) -> bool:
        """Is a preparation worth ending, now that things look a little different?"""
        live = self.membership.live
        return (
            self.engine.ready
            and not self.broken
            and plan.revision == self.target.revision
            and (decision.plan is None or decision.prepare)
            and all(
                worker in live and not live[worker].leaving and not live[worker].problem
                for worker in plan.workers
            )
        )

    def _decide(self) -> Decision:
        """What should be in force now."""
        live, plan = self.membership.live, self.plan
        lost = plan is not None and any(worker not in live for worker in plan.workers)
        if not lost:
            self._lost_since = 0.0
        elif not self._lost_since:
            self._lost_since = time.monotonic()
            self._noticed = time.monotonic()
        self._planner.load_rate = self.membership.load_rate()
        try:
            return self._planner.decide(
                plan,
                self.membership.candidates(),
                lost_for_s=time.monotonic() - self._lost_since if lost else 0.0,
                settled_for_s=self.membership.settled_for_s,
                coming=self.membership.coming,
                force=self.next is None and self.plans.take_rebalance(),
            )
        except PlanError as error:
            return Decision(f"no plan: {error}")

    def _fits(self, plan: Plan) -> bool:
        """Is it a plan that the engine can run, though maybe not what is asked for now?"""
        same = ("model", "dtype", "num_slots", "slot_tokens")
        return all(getattr(plan, name) == getattr(self.target, name) for name in same)

    def _go(self, decision: Decision) -> None:
        """Put the decision's plan in force: at once, or when it is prepared."""
        plan = decision.plan
        if plan is None or not self._may_try_again():
            return
        if not (decision.prepare and self.engine.ready):
            if not self.engine.ready or self.engine.drain() or self._is_lost():
                self._switch(plan, decision.reason)
            return
        if self.next is None or not _alike(self.next, plan):
            self.next = self._number(plan)
            self._began, self._next_reason = time.monotonic(), decision.reason
            self.plans.prepare(self.next, self.fence())
            self.tell("prepare", f"plan {self.next.epoch}: {decision.reason}", 0.0)
        elif not self.membership.not_prepared(self.next) and self.engine.drain():
            seconds = time.monotonic() - self._began
            self.tell("prepared", f"plan {self.next.epoch}, step boundary reached", seconds)
            self._switch(self.next, decision.reason, numbered=True)

    def _number(self, plan: Plan) -> Plan:
        return self.plans.number(plan, self.fence(), max(self.epoch, self.membership.last_epoch))

    def _forget_next(self) -> None:
        if self.next is not None:
            self.next = None
            self.plans.forget_next(self.fence())

    def _is_lost(self) -> bool:
        return self._lost_since > 0

    def _suspend(self, cause: str) -> None:
        logger.warning("%s: waiting; %s", cause, self.reason)
        self.engine.suspend()
        self.engine.blame_loss()
        self.step_failed(cause)

    def _switch(self, plan: Plan, reason: str, *, numbered: bool = False) -> None:
        if numbered or not self.broken:
            self._noticed = time.monotonic()
        self.engine.suspend()
        if self._is_lost():
            self.engine.blame_loss()
        if not numbered:
            plan = self._number(plan)
        self._began = time.monotonic()
        self.plans.publish(plan, self.fence(), self.plan)
        self.plan, self.next, self.switching = plan, None, True
        cause = f"{self.broken}: {reason}" if self.broken and self.broken != reason else reason
        self.broken = ""
        stages, shards = plan.shape
        self.tell("plan", f"{plan.epoch}, {plan.name}, {stages}x{shards}: {cause}", 0.0)

    def _finish_switch(self) -> None:
        plan = self.plan
        if plan is None or self.membership.not_ready(plan):
            return
        self.switching = False
        self.tell("ready", f"plan {plan.epoch}: all shards", time.monotonic() - self._began)
        self.engine.resume(plan)

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """The engine is where it was: tell how long that took."""
        text = (
            f"{num_sequences} requests, {num_tokens} tokens in {seconds:.2f} s; "
            "since it was noticed"
        )
        self.tell("replay", text, time.monotonic() - self._noticed)

    def _may_try_again(self) -> bool:
        """Losing step after step must not keep everybody busy with epochs alone."""
        if not self.broken:
            return True
        now = time.monotonic()
        self._failures = [at for at in self._failures if now - at < CALM_S]
        wait_s = min(MAX_WAIT_S, 0.1 * 2 ** len(self._failures)) if self._failures else 0.0
        if self._failures and now - self._failures[-1] < wait_s:
            return False
        self._failures.append(now)
        return True

    def _waits(self) -> list[str]:
        if self.next is not None:
            return [f"preparing {name}" for name in self.membership.not_prepared(self.next)]
        return self.membership.not_ready(self.plan) if self.switching and self.plan else []

    def _make_planner(self) -> Planner:
        target = self.target
        shape = (target.stages, target.shards)
        wish = Wish(
            None if None in shape else shape,  # type: ignore[arg-type]
            target.fixed,
            target.revision,
        )
        return Planner(self.arch, self._layout, wish)

    def _layout(
        self, stages: int, shards: int, weights: Sequence[Sequence[float]] | None = None
    ) -> Plan:
        return layout_of(self.arch, self.target, stages, shards, weights)

    def status(self) -> dict[str, Any]:
        """For `skynet status`."""
        if self.engine.ready:
            state = "ready" if self.next is None else f"ready, preparing plan {self.next.epoch}"
        else:
            state = f"waiting for {', '.join(self.waits)}" if self.waits else "waiting"
        return {"state": state, "reason": self.reason, "epoch": self.epoch, "waits": self.waits}


def layout_of(
    arch: Architecture,
    target: Target,
    stages: int,
    shards: int,
    weights: Sequence[Sequence[float]] | None = None,
) -> Plan:
    """The target in this shape, with no workers."""
    options = PlanOptions(
        model=target.model,
        name=target.name,
        dtype=target.dtype,
        chord_span=target.chord_span,
        num_slots=target.num_slots,
        slot_tokens=target.slot_tokens,
    )
    plan = make_plan(arch, options, stages=stages, shards=shards, epoch=0, weights=weights)
    return replace(plan, revision=target.revision)


def _alike(one: Plan, other: Plan) -> bool:
    return (one.stages, one.workers, one.revision) == (other.stages, other.workers, other.revision)
