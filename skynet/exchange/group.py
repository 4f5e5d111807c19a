"""The shards of a stage under one plan, as the exchange of one of them sees them."""

from __future__ import annotations

from dataclasses import dataclass, field

from skynet.planning.plan import Plan
from skynet.wire.keys import Address


@dataclass(frozen=True)
class Group:
    """The shards that exchange partials, and which of them this one is.

    secret: of the plan; authenticates links.
    members: ids of the members that hold the shards; empty without links.
    """

    epoch: int
    stage: int
    shard: int
    num_shards: int
    plan_id: str = ""  # 16 ASCII characters at most
    secret: str = field(default="", repr=False)
    members: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, address: Address) -> Group:
        shards = plan.num_shards
        members = plan.workers[address.stage * shards : (address.stage + 1) * shards]
        return cls(plan.epoch, address.stage, address.shard, shards, plan.id, plan.secret, members)

    @property
    def peers(self) -> list[int]:
        return [shard for shard in range(self.num_shards) if shard != self.shard]

    def name(self, shard: int | None = None) -> str:
        """The address of a shard; by default of this one."""
        return str(Address(self.stage, self.shard if shard is None else shard))
