"""From one plan to the next: numbered, prepared beside the one in force, published, running."""

from __future__ import annotations

import logging
from collections.abc import Callable

from skynet.engine.engine import Engine
from skynet.errors import WireError
from skynet.orchestrator.membership import Membership
from skynet.planning.plan import Plan
from skynet.store.metrics import Recovery
from skynet.store.plans import Plans

logger = logging.getLogger(__name__)

NEW_LEADER = "a new leader"


class PlanSwitch:
    """The plan in force, and the one that follows it.

    plan: in force, possibly by an earlier leader.
    next: in preparation, because of `next_reason`.
    switching: the plan in force is published, and not all of its shards are ready.
    broken: why the plan in force needs a new epoch, or "".
    fence: of the leader; every write carries it.
    tell: called with (kind, text, seconds) for every event.
    recovered: called when a plan runs, and again when its sequences are computed again.
    """

    def __init__(
        self,
        plans: Plans,
        membership: Membership,
        engine: Engine,
        fence: Callable[[], str],
        tell: Callable[[str, str, float], None],
    ) -> None:
        self.plans = plans
        self.membership = membership
        self.engine = engine
        self.fence = fence
        self.tell = tell
        self.recovered: Callable[[Recovery], None] = lambda recovery: None
        self.plan = _current(plans)
        self.next: Plan | None = None
        self.next_reason = ""
        self.switching = False
        self.broken = NEW_LEADER if self.plan is not None else ""
        self._began = membership.clock()  # of the preparation or the switch
        self._noticed = membership.clock()  # of the loss or failure, or of a planned switch
        self._kind, self._silence_s = "planned", 0.0  # of the recovery
        self._resumed = 0.0

    @property
    def epoch(self) -> int:
        """Of the plan in force; 0: none."""
        return self.plan.epoch if self.plan is not None else 0

    def note_loss(self) -> None:
        """A worker of the plan in force is lost."""
        self._noticed = self.membership.clock()
        self._silence_s = self.membership.silence_s

    def step_failed(self, cause: str) -> None:
        """The plan in force has lost a step or its shards' slots: it needs a new epoch."""
        if not self.broken:
            self.broken = cause
            self._noticed = self.membership.clock()

    def prepare(self, plan: Plan, reason: str) -> None:
        """Have the workers load the plan's tiles beside those of the plan in force."""
        self.next = self._number(plan)
        self._began, self.next_reason = self.membership.clock(), reason
        self.plans.prepare(self.next, self.fence())
        self.tell("prepare", f"plan {self.next.epoch}: {reason}", 0.0)

    def forget_next(self) -> None:
        """Stop the preparation, if there is one."""
        if self.next is not None:
            self.next = None
            self.plans.forget_next(self.fence())

    def finish_preparation(self, plan: Plan, reason: str, is_lost: bool) -> None:
        """Put the prepared plan in force once it is loaded and the engine is at a step boundary."""
        if self.membership.not_prepared(plan) or not self.engine.drain():
            return
        seconds = self.membership.clock() - self._began
        self.tell("prepared", f"plan {plan.epoch}, step boundary reached", seconds)
        self._noticed = self.membership.clock()
        self._publish(plan, reason, is_lost)

    def switch(self, plan: Plan, reason: str, is_lost: bool) -> None:
        """Put a plan in force that was not prepared. `is_lost`: a worker died in the last one."""
        if not self.broken:
            self._noticed = self.membership.clock()
        self._publish(plan, reason, is_lost, numbered=False)

    def _publish(self, plan: Plan, reason: str, is_lost: bool, *, numbered: bool = True) -> None:
        self.engine.suspend()
        if is_lost:
            self.engine.blame_loss()
        if not numbered:
            plan = self._number(plan)
        self._began = self.membership.clock()
        self.plans.publish(plan, self.fence(), self.plan)
        self.plan, self.next, self.switching = plan, None, True
        self._kind = _kind_of(self.broken, is_lost)
        cause = f"{self.broken}: {reason}" if self.broken and self.broken != reason else reason
        self.broken = ""
        stages, shards = plan.shape
        self.tell("plan", f"{plan.epoch}, {plan.name}, {stages}x{shards}: {cause}", 0.0)

    def _number(self, plan: Plan) -> Plan:
        return self.plans.number(plan, self.fence(), max(self.epoch, self.membership.last_epoch))

    def keep(self) -> None:
        """Write the plans again if another client has changed them: workers follow the keys."""
        if self.plan is None or self.broken:
            return
        if self.plans.restore(self.plan, self.next, self.fence()):
            logger.error("another client has changed the plan in Redis: written again")

    def finish(self) -> None:
        """Resume the engine once all shards of the published plan are ready."""
        plan = self.plan
        if plan is None or not self.switching or self.broken or self.membership.not_ready(plan):
            return
        self.switching = False
        seconds = self.membership.clock() - self._began
        self.tell("ready", f"plan {plan.epoch}: all shards", seconds)
        self._note_recovery(plan)
        self.engine.resume(plan)

    def _note_recovery(self, plan: Plan) -> None:
        self._resumed = self.membership.clock()
        notice_s = self._silence_s if self._kind == "lost" else 0.0
        load_s, at = self._resumed - self._noticed, self.membership.last_renewal
        self.recovered(Recovery(self._kind, at, plan.epoch, notice_s, load_s))

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """All sequences are computed again: report the whole interruption."""
        text = (
            f"{num_sequences} requests, {num_tokens} tokens in {seconds:.2f} s; "
            "since it was noticed"
        )
        now = self.membership.clock()
        self.tell("replay", text, now - self._noticed)
        replay_s, at = now - self._resumed, self.membership.last_renewal
        self.recovered(Recovery(self._kind, at, self.epoch, replay_s=replay_s))

    def waits(self) -> list[str]:
        """Shards that the preparation or the switch waits for."""
        if self.next is not None:
            return [f"preparing {name}" for name in self.membership.not_prepared(self.next)]
        return self.membership.not_ready(self.plan) if self.switching and self.plan else []


def _kind_of(broken: str, is_lost: bool) -> str:
    """Of the recovery that a plan brings; see `Recovery`."""
    if is_lost:
        return "lost"
    return "leader" if broken == NEW_LEADER else "failed" if broken else "planned"


def _current(plans: Plans) -> Plan | None:
    """The plan in force; None, with an error in the log, if it cannot be read."""
    try:
        return plans.current()
    except WireError as error:
        logger.error("%s: another is made", error)
        return None
