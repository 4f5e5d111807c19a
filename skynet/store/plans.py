"""The plan in force, and the epoch counter that numbers plans."""

from __future__ import annotations

import redis

from skynet import names
from skynet.errors import NoModel
from skynet.planning.plan import Plan


class Plans:
    """The plan of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def publish(self, plan: Plan) -> Plan:
        """Put the plan in force under the next epoch; returns it with that epoch."""
        epoch: int = self.client.incr(names.EPOCH_KEY)
        numbered = plan.with_epoch(epoch)
        self.client.set(names.PLAN_KEY, numbered.to_json())
        return numbered

    def current(self) -> Plan | None:
        """The plan in force, or None."""
        text = self.client.get(names.PLAN_KEY)
        return None if text is None else Plan.from_json(text)

    def require(self) -> Plan:
        """The plan in force, or NoModel."""
        plan = self.current()
        if plan is None:
            raise NoModel(
                "no model has been split onto this cluster: run "
                "`skynet split MODEL --stages 2 --shards 2`"
            )
        return plan
