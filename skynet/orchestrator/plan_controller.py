"""Which plan is in force: the leading orchestrator's control loop.

Every cause takes one path, be it a loss, a join, a leave, a lost step or a new leader: a new epoch,
missing tiles, replay. While the plan in force works, the next one is prepared beside it and put in
force at a step boundary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from skynet.engine.engine import Engine
from skynet.errors import PlanError
from skynet.orchestrator.membership import Membership
from skynet.orchestrator.plan_switch import PlanSwitch
from skynet.orchestrator.target_plans import TargetPlans
from skynet.planning.placement import Decision
from skynet.planning.plan import Plan
from skynet.store.plans import Plans
from skynet.store.targets import Target

logger = logging.getLogger(__name__)

LOOK_S = 0.25  # between looks at the members in a steady state
FAST_LOOK_S = 0.05  # otherwise
CALM_S = 5.0  # after which a failure does not delay a new epoch any more
MAX_WAIT_S = 4.0


class Backoff:
    """Delays new epochs while steps keep failing: 0.2 s after one failure, then doubled."""

    def __init__(self) -> None:
        self._failures: list[float] = []

    def may_try(self, now: float) -> bool:
        """Whether to start a new epoch after a failure; counts as a failure if so."""
        self._failures = [at for at in self._failures if now - at < CALM_S]
        wait_s = min(MAX_WAIT_S, 0.1 * 2 ** len(self._failures)) if self._failures else 0.0
        if self._failures and now - self._failures[-1] < wait_s:
            return False
        self._failures.append(now)
        return True


class PlanController:
    """Keeps `engine` on a plan that can run, for one target at a time.

    fence: of the leader; every write carries it.
    tell: called with (kind, text, seconds) for every event.
    """

    def __init__(
        self,
        plans: Plans,
        membership: Membership,
        engine: Engine,
        target_plans: TargetPlans,
        fence: Callable[[], str],
        tell: Callable[[str, str, float], None],
    ) -> None:
        self.plans = plans
        self.membership = membership
        self.engine = engine
        self.target_plans = target_plans
        self.switch = PlanSwitch(plans, membership, engine, fence, tell)
        self.reason = "starting"
        self.waits: list[str] = []
        self._planner = target_plans.planner()
        self._backoff = Backoff()
        self._looked = 0.0
        self._lost_since = 0.0  # a worker of the plan in force is lost; 0: none is

    @property
    def epoch(self) -> int:
        """Of the plan in force; 0: none."""
        return self.switch.epoch

    def follow(self, target: Target) -> None:
        """The same model is asked for in another shape."""
        self._lay_out(replace(self.target_plans, target=target))

    def _lay_out(self, target_plans: TargetPlans) -> None:
        if target_plans != self.target_plans:
            self.target_plans, self._planner = target_plans, target_plans.planner()

    def step_failed(self, cause: str) -> None:
        """The plan in force has lost a step or its shards' slots: it needs a new epoch."""
        self.switch.step_failed(cause)

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """All sequences are computed again: report the whole interruption."""
        self.switch.replayed(num_sequences, num_tokens, seconds)

    def tick(self) -> None:
        """Look at the members and do the next thing for the plan; call it often."""
        switch, now = self.switch, self.membership.clock()
        steady = self.engine.ready and switch.next is None and not switch.broken
        if now - self._looked < (LOOK_S if steady else FAST_LOOK_S):
            return
        self._looked = now
        self.membership.look()
        if self.membership.reconnected:
            # Messages to a worker that lost its connection may be lost.
            self.membership.reconnected = False
            self.engine.hurry()
        switch.keep()
        switch.finish()
        decision = self._decide()
        if switch.next is not None and self._may_go_on(switch.next, decision):
            decision = Decision(switch.next_reason, switch.next, prepare=True)
        self.reason = decision.reason
        if decision.plan is not None:
            self._follow(decision.plan, decision)
        elif self._lost_since:
            switch.forget_next()
            if self.engine.ready:
                self._suspend(f"lost {', '.join(decision.missing)}")
        elif switch.broken and switch.plan is not None and self.target_plans.can_run(switch.plan):
            self._follow(switch.plan, Decision(switch.broken, switch.plan))
        else:
            switch.forget_next()  # its reason has passed
            self.engine.go_on()
        self.waits = list(decision.missing) or switch.waits()

    def _may_go_on(self, plan: Plan, decision: Decision) -> bool:
        """Whether to finish a preparation though the members have changed."""
        live = self.membership.live
        return (
            self.engine.ready
            and not self.switch.broken
            and plan.revision == self.target_plans.target.revision
            and (decision.plan is None or decision.prepare)
            and all(
                worker in live and not live[worker].leaving and not live[worker].problem
                for worker in plan.workers
            )
        )

    def _decide(self) -> Decision:
        """The plan that should be in force now."""
        live, plan, now = self.membership.live, self.switch.plan, self.membership.clock()
        lost = plan is not None and any(worker not in live for worker in plan.workers)
        if not lost:
            self._lost_since = 0.0
        elif not self._lost_since:
            self._lost_since = now
            self.switch.note_loss()
        members = self.membership.candidates()
        self._lay_out(self.target_plans.for_members(plan, members))
        self._planner.load_rate = self.membership.load_rate()
        try:
            return self._planner.decide(
                plan,
                members,
                lost_for_s=self.membership.clock() - self._lost_since if lost else 0.0,
                settled_for_s=self.membership.settled_for_s,
                coming=self.membership.coming,
                force=self.switch.next is None and self.plans.take_rebalance(),
            )
        except PlanError as error:
            return Decision(f"no plan: {error}")

    def _follow(self, plan: Plan, decision: Decision) -> None:
        """Put the decision's plan in force: at once, or when it is prepared."""
        switch, is_lost = self.switch, self._lost_since > 0
        if switch.broken and not self._backoff.may_try(self.membership.clock()):
            return
        if not (decision.prepare and self.engine.ready):
            if not self.engine.ready or self.engine.drain() or is_lost:
                switch.switch(plan, decision.reason, is_lost)
        elif switch.next is None or not _same_layout(switch.next, plan):
            switch.prepare(plan, decision.reason)
        else:
            switch.finish_preparation(switch.next, decision.reason, is_lost)

    def _suspend(self, cause: str) -> None:
        logger.warning("%s: waiting; %s", cause, self.reason)
        self.engine.suspend()
        self.engine.blame_loss()
        self.switch.step_failed(cause)

    def status(self) -> dict[str, Any]:
        """For `skynet status`."""
        following = self.switch.next
        if self.engine.ready:
            state = "ready" if following is None else f"ready, preparing plan {following.epoch}"
        else:
            state = f"waiting for {', '.join(self.waits)}" if self.waits else "waiting"
        return {"state": state, "reason": self.reason, "epoch": self.epoch, "waits": self.waits}


def _same_layout(one: Plan, other: Plan) -> bool:
    return (one.stages, one.workers, one.revision) == (other.stages, other.workers, other.revision)
