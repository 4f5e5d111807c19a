"""The plan in force, the plan in preparation, and their epochs.

Only the leading orchestrator writes them, under its fence.
"""

from __future__ import annotations

from typing import Any, cast

import redis

from skynet.planning.plan import Plan, protocol_of
from skynet.store.leader import COUNT, GUARD, fenced
from skynet.wire import keys
from skynet.wire.protocol import PROTOCOL

# KEYS: leader, epoch. ARGV: fence, the last epoch that a member knows; a Redis that restarted
# without its data has forgotten it. Replies the next epoch.
NEXT_EPOCH = (
    GUARD
    + COUNT
    + """
local epoch = math.max(count(redis.call('GET', KEYS[2])), tonumber(ARGV[2])) + 1
redis.call('SET', KEYS[2], string.format('%.0f', epoch))
return epoch
"""
)

# KEYS: leader, plan, plan in preparation, then the queues of all addresses, whose messages are of
# older plans. ARGV: fence, plan.
PUBLISH = (
    GUARD
    + """
redis.call('SET', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
for i = 4, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
)

# KEYS: leader, plan, plan in preparation. ARGV: fence, the plan to prepare.
PREPARE = GUARD + "redis.call('SET', KEYS[3], ARGV[2]); return 1"

# KEYS: leader, plan, plan in preparation. ARGV: fence, their JSON; "": no plan in preparation.
RESTORE = (
    GUARD
    + """
redis.call('SET', KEYS[2], ARGV[2])
if ARGV[3] == '' then redis.call('DEL', KEYS[3]) else redis.call('SET', KEYS[3], ARGV[3]) end
return 1
"""
)

# KEYS: leader, plan in preparation. ARGV: fence.
FORGET = GUARD + "return redis.call('DEL', KEYS[2])"


class Plans:
    """The plans of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._next_epoch = client.register_script(NEXT_EPOCH)
        self._publish = client.register_script(PUBLISH)
        self._prepare = client.register_script(PREPARE)
        self._forget = client.register_script(FORGET)
        self._restore = client.register_script(RESTORE)

    def current(self) -> Plan | None:
        """The plan in force, or None; see `plan_of`.

        Raises:
            WireError: the key holds something else.
        """
        return plan_of(self.texts()[0])

    def texts(self) -> tuple[bytes | None, bytes | None]:
        """The plan in force and the plan in preparation, as JSON."""
        current, following = cast(Any, self.client.mget(keys.plan_key(), keys.next_plan_key()))
        return current, following

    def number(self, plan: Plan, fence: str, known: int = 0) -> Plan:
        """The plan under the next epoch, which is later than `known`; not yet in force.

        Raises:
            Fenced: the caller is not the leader any more.
        """
        with fenced():
            redis_keys = [keys.leader_key(), keys.epoch_key()]
            return plan.with_epoch(int(self._next_epoch(keys=redis_keys, args=[fence, known])))

    def publish(self, plan: Plan, fence: str, before: Plan | None = None) -> None:
        """Put a numbered plan in force and forget the plan in preparation.

        Drops the stale messages in the queues of its addresses and of those of the plan `before`.
        """
        addresses = {*plan.addresses(), *(before.addresses() if before else ())}
        queues = sorted(keys.queue_key(str(keys.Address(*address))) for address in addresses)
        with fenced():
            self._publish(keys=[*_keys(), *queues], args=[fence, plan.to_json()])

    def forget_next(self, fence: str) -> None:
        """Drop the plan in preparation; members free the slices that they loaded for it."""
        with fenced():
            self._forget(keys=[keys.leader_key(), keys.next_plan_key()], args=[fence])

    def prepare(self, plan: Plan, fence: str) -> None:
        """Have members load their slices for a numbered plan."""
        with fenced():
            self._prepare(keys=_keys(), args=[fence, plan.to_json()])

    def restore(self, plan: Plan, following: Plan | None, fence: str) -> bool:
        """Write the plans again if another client has changed them; whether one had."""
        text, next_text = plan.to_json(), following.to_json() if following else ""
        if self.texts() == (text.encode(), next_text.encode() or None):
            return False
        with fenced():
            self._restore(keys=_keys(), args=[fence, text, next_text])
        return True

    def ask_rebalance(self) -> None:
        """Ask the leading orchestrator to rebalance now."""
        self.client.set(keys.rebalance_key(), 1, ex=60)

    def take_rebalance(self) -> bool:
        """Whether a rebalance was asked for since the last call."""
        return self.client.getdel(keys.rebalance_key()) is not None


def plan_of(text: bytes | None) -> Plan | None:
    """The plan in JSON; None if there is none, or if it is of another protocol."""
    return Plan.from_json(text) if text and protocol_of(text) == PROTOCOL else None


def _keys() -> list[str]:
    return [keys.leader_key(), keys.plan_key(), keys.next_plan_key()]
