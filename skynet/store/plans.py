"""What the user asked for, the plan in force, the plan that is being prepared, and their epochs.

Targets are written by whoever splits a model; plans by the leading orchestrator only, under its
fence.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import redis

from skynet.errors import NoModel
from skynet.planning.plan import Plan
from skynet.store.leader import GUARD, fenced
from skynet.wire import keys

# KEYS: leader, epoch. ARGV: fence, the last epoch that a member knows, which a Redis that started
# again without its data does not. Replies the next epoch.
NEXT_EPOCH = (
    GUARD
    + """
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[2])) + 1
redis.call('SET', KEYS[2], epoch)
return epoch
"""
)

# KEYS: leader, plan, prepared plan, and the queues of every address: what lies there is of older
# plans. ARGV: fence, plan.
PUBLISH = (
    GUARD
    + """
redis.call('SET', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
for i = 4, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
)

# KEYS: leader, plan, prepared plan. ARGV: fence, the plan to prepare.
PREPARE = GUARD + "redis.call('SET', KEYS[3], ARGV[2]); return 1"

# KEYS: leader, prepared plan. ARGV: fence.
FORGET = GUARD + "return redis.call('DEL', KEYS[2])"


@dataclass(frozen=True)
class Target:
    """A model and how it should be cut; the leading orchestrator makes plans from it.

    stages, shards: the shape asked for; None: chosen for the members there are.
    fixed: wait for members rather than fall back to a smaller shape.
    revision: numbered when published.
    """

    model: str  # content digest of the staged checkpoint
    name: str
    dtype: str
    chord_span: str
    num_slots: int
    slot_tokens: int
    stages: int | None = None
    shards: int | None = None
    fixed: bool = False
    revision: int = 0

    @classmethod
    def of(cls, plan: Plan, fixed: bool = False, *, any_shape: bool = False) -> Target:
        """The target of which `plan` is the layout; `any_shape` leaves its shape open."""
        return cls(
            plan.model,
            plan.name,
            plan.dtype,
            plan.chord_span,
            plan.num_slots,
            plan.slot_tokens,
            None if any_shape else len(plan.stages),
            None if any_shape else plan.num_shards,
            fixed,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Target:
        return cls(**json.loads(text))


class Plans:
    """Target and plans of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._next_epoch = client.register_script(NEXT_EPOCH)
        self._publish = client.register_script(PUBLISH)
        self._prepare = client.register_script(PREPARE)
        self._forget = client.register_script(FORGET)

    # -- what is asked for ---------------------------------------------------------------------

    def ask(self, target: Target) -> Target:
        """Ask for this target from now on; returns it numbered."""
        revision: int = self.client.incr(keys.REVISION_KEY)
        numbered = replace(target, revision=revision)
        self.client.set(keys.TARGET_KEY, numbered.to_json())
        return numbered

    def restore(self, target: Target) -> None:
        """Ask again for a target that Redis has forgotten, unless another was asked for."""
        self.client.set(keys.TARGET_KEY, target.to_json(), nx=True)

    def target(self) -> Target | None:
        """What is asked for, or None."""
        text = self.client.get(keys.TARGET_KEY)
        return None if text is None else Target.from_json(cast(bytes, text))

    def require_target(self) -> Target:
        """What is asked for, or NoModel."""
        target = self.target()
        if target is None:
            raise NoModel(
                "no model has been split onto this cluster: run "
                "`skynet split MODEL --stages 2 --shards 2`"
            )
        return target

    def ask_rebalance(self) -> None:
        """Ask the leading orchestrator to rebalance now."""
        self.client.set(keys.REBALANCE_KEY, 1, ex=60)

    def take_rebalance(self) -> bool:
        """Has somebody asked to rebalance? Asked once, told once."""
        return self.client.getdel(keys.REBALANCE_KEY) is not None

    # -- plans ---------------------------------------------------------------------------------

    def current(self) -> Plan | None:
        """The plan in force, or None."""
        text = self.client.get(keys.PLAN_KEY)
        return None if text is None else Plan.from_json(cast(bytes, text))

    def texts(self) -> tuple[bytes | None, bytes | None]:
        """The plan in force and the one that is being prepared, as JSON."""
        found: Any = self.client.mget(keys.PLAN_KEY, keys.NEXT_PLAN_KEY)
        return found[0], found[1]

    def number(self, plan: Plan, fence: str, known: int = 0) -> Plan:
        """The plan under the next epoch, later than any `known` one, not yet in force.

        Raises:
            Fenced: whoever asks is not the leader any more.
        """
        with fenced():
            redis_keys = [keys.LEADER_KEY, keys.EPOCH_KEY]
            return plan.with_epoch(int(self._next_epoch(keys=redis_keys, args=[fence, known])))

    def publish(self, plan: Plan, fence: str, before: Plan | None = None) -> None:
        """Put a numbered plan in force; whatever was being prepared is forgotten.

        The messages that wait at its addresses, and at those of the plan `before`, are stale.
        """
        addresses = {*plan.addresses(), *(before.addresses() if before else ())}
        queues = sorted(str(keys.Address(*address)) for address in addresses)
        with fenced():
            self._publish(keys=[*_keys(), *queues], args=[fence, plan.to_json()])

    def forget_next(self, fence: str) -> None:
        """Nothing is being prepared any more: members free what they have loaded for it."""
        with fenced():
            self._forget(keys=[keys.LEADER_KEY, keys.NEXT_PLAN_KEY], args=[fence])

    def prepare(self, plan: Plan, fence: str) -> None:
        """Let members load what they will need for a numbered plan."""
        with fenced():
            self._prepare(keys=_keys(), args=[fence, plan.to_json()])


def _keys() -> list[str]:
    return [keys.LEADER_KEY, keys.PLAN_KEY, keys.NEXT_PLAN_KEY]
