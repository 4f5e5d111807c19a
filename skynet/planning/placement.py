"""Decides which plan should be in force for the present members, and why. Pure.

The same decision answers a join, a loss, a leave and a changed target, and has the same
consequences: loading and replay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from skynet.architecture.architecture import Architecture
from skynet.planning.compute import Work
from skynet.planning.cost import Candidate, load_s, memory_weights, overfull, shard_weights
from skynet.planning.plan import Plan
from skynet.planning.proximity import Proximity, host_of
from skynet.planning.timing import step_time, token_s
from skynet.wire.keys import Address

MIN_GAIN = 0.1  # a faster plan must gain this much to be worth a pause
QUICK_S = 2.0
MAX_LAYOUTS = 256
ROUNDED_BITS = 28  # free memory changes all the time; a quarter of a GiB makes no difference
STARTING_S = 15.0  # how long to wait for a worker that is starting
HORIZON_S = 60.0  # a pause must be earned back within this time

Layout = Callable[[int, int, Sequence[Sequence[float]] | None, bool], Plan]
"""(stages, shards, weights, whether these are memory) -> a plan of that shape without workers; may
raise PlanError."""


@dataclass(frozen=True)
class Wish:
    """The requested shape; None: any. `fixed`: no other shape is used."""

    shape: tuple[int, int] | None
    fixed: bool = False
    revision: int = 0


@dataclass(frozen=True)
class Decision:
    """The plan to put in force; None: no change, for the reason given.

    missing: the addresses that no member can take, if that is the reason.
    prepare: the current plan keeps running while this one is loaded.
    """

    reason: str
    plan: Plan | None = None
    missing: tuple[str, ...] = ()
    prepare: bool = False


@dataclass
class Planner:
    """Makes decisions for one model.

    load_rate: measured bytes per second at which members load; 0 before the first measurement.
    """

    arch: Architecture
    layout: Layout
    wish: Wish
    load_rate: float = 0.0
    _layouts: dict[object, Plan] = field(default_factory=dict)
    # What the last plan was compared with, and the decision: shapes for many members take seconds.
    _improved: tuple[object, Decision] | None = None

    def decide(
        self,
        current: Plan | None,
        members: Sequence[Candidate],
        *,
        lost_for_s: float = 0.0,
        settled_for_s: float = 0.0,
        coming: bool = False,
        force: bool = False,
    ) -> Decision:
        """The decision for the current plan and the live members.

        lost_for_s: how long an address of the current plan has been empty.
        settled_for_s: how long since a member joined or left.
        coming: a worker is starting and will soon be a member.
        force: take a faster plan even if the gain is small.
        """
        if current is None or current.revision != self.wish.revision:
            return self._first(current, members, settled_for_s)
        live = {member.id: member for member in members}
        holders = current.placed()
        lost = [w for w in current.workers if w not in live]
        leaving = [w for w in holders if w in live and live[w].leaving]
        if lost or leaving:
            return self._replace(current, members, lost, lost_for_s, coming)
        rounded = tuple(replace(m, free_bytes=m.free_bytes >> ROUNDED_BITS) for m in members)
        compared = (current, rounded, self.load_rate, force)
        if self._improved is None or self._improved[0] != compared:
            self._improved = compared, self._improve(current, members, force)
        return self._improved[1]

    # -- the first plan of a wish --------------------------------------------------------------

    def _first(
        self, current: Plan | None, members: Sequence[Candidate], settled_for_s: float
    ) -> Decision:
        staying = [member for member in members if not member.leaving]
        holders = current.placed() if current else {}
        if self.wish.shape is None:
            if settled_for_s < 2:
                return Decision("waiting for members to settle")
            return self._best(staying, holders, "the best shape for the members")
        stages, shards = self.wish.shape
        plan = self._layout(stages, shards)
        workers, missing = assign(plan, staying, holders)
        if missing:
            return Decision(f"waiting for {', '.join(missing)}", missing=missing)
        by_id = {member.id: member for member in members}
        chosen = [by_id[worker] for worker in workers]
        plan, reason = self._placed(plan, workers), "the shape asked for"
        if overfull(self.arch, plan, chosen):  # cut evenly; by memory it may fit
            fitting, problem = self._fitting(stages, shards, chosen)
            if not problem:
                return Decision(f"{reason}, cut by the members' memory", fitting)
            reason += f", though with every slot full {problem}"
        return Decision(reason, plan)

    # -- places that are or will be empty ------------------------------------------------------

    def _replace(
        self,
        current: Plan,
        members: Sequence[Candidate],
        lost: list[str],
        lost_for_s: float,
        coming: bool,
    ) -> Decision:
        staying = [member for member in members if not member.leaving]
        holders = current.placed()
        if self.wish.shape not in (None, current.shape):
            again = self._first(current, members, 0.0)
            if again.plan is not None:
                return replace(again, prepare=not lost)
        workers, missing = assign(current, staying, holders)
        if not missing:
            taken = [w for w, old in zip(workers, current.workers, strict=True) if w != old]
            plan = replace(current, workers=workers)
            return Decision(f"{len(taken)} taken over by spares", plan, prepare=not lost)
        if self.wish.fixed:
            return self._empty(current, members, missing, "the shape is fixed")
        if coming and lost_for_s < STARTING_S:
            return Decision(f"{', '.join(missing)}: a worker is starting", missing=missing)
        smaller = self._best(staying, holders, f"nobody can take {', '.join(missing)}", current)
        if smaller.plan is None:
            return self._empty(current, members, missing, smaller.reason)
        if lost:
            # Ski rental: wait at most as long as loading the smaller shape takes, and not at all if
            # that is quick.
            smaller_s = load_s(self.arch, smaller.plan, current, self.load_rate)
            patience = max(0.0, smaller_s - QUICK_S)
            if lost_for_s < patience:
                reason = f"{', '.join(missing)}: a replacement has {patience:.1f} s to come"
                return Decision(reason, missing=missing)
        return replace(smaller, prepare=not lost)

    def _empty(
        self, current: Plan, members: Sequence[Candidate], missing: tuple[str, ...], why: str
    ) -> Decision:
        """No plan fits: release members that are leaving, and leave their addresses empty."""
        leaving = {member.id for member in members if member.leaving}
        workers = tuple("" if worker in leaving else worker for worker in current.workers)
        reason = f"waiting for {', '.join(missing)}: {why}"
        if workers == current.workers:
            return Decision(reason, missing=missing)
        return Decision(reason, replace(current, workers=workers), missing)

    # -- a better plan -------------------------------------------------------------------------

    def _improve(self, current: Plan, members: Sequence[Candidate], force: bool) -> Decision:
        spares = len(members) - len(current.workers)
        if self.wish.shape is not None:
            if current.shape == self.wish.shape:
                closer = self._first(None, members, 0.0).plan
                told = f"in the shape asked for, {spares} spare"
                return self._if_closer(current, closer, members, told)
            again = self._first(current, members, 0.0)
            if again.plan is None:
                return Decision(f"not in the shape asked for: {again.reason}")
            return replace(again, reason="the shape asked for is possible again", prepare=True)
        best = self._best(members, current.placed(), "the best shape for the members")
        told = f"no shape is better for these members, {spares} spare"
        if best.plan is None or best.plan.stages == current.stages:
            return self._if_closer(current, self._best(members, {}, "").plan, members, told)
        return self._if_worth_it(current, best.plan, members, force)

    def _if_closer(
        self, current: Plan, other: Plan | None, members: Sequence[Candidate], told: str
    ) -> Decision:
        """A plan that does not keep workers in their places, if that makes its sums quicker.

        told: of the current plan, if it does not.
        """
        if other is None:
            return Decision(told)
        by_id = {member.id: member for member in members}
        now, then = (
            step_time(self.arch, plan, [by_id[w] for w in plan.workers], Work())
            for plan in (current, other)
        )
        if now.sums_s - then.sums_s < MIN_GAIN * now.total_s:
            return Decision(told)
        return self._if_worth_it(current, other, members)

    def _if_worth_it(
        self, current: Plan, other: Plan, members: Sequence[Candidate], force: bool = False
    ) -> Decision:
        """Another plan, if it is so much faster that the pause pays. force: in any case."""
        by_id = {member.id: member for member in members}
        now_s = token_s(self.arch, current, [by_id[w] for w in current.workers])
        then_s = token_s(self.arch, other, [by_id[w] for w in other.workers])
        pause_s = load_s(self.arch, other, current, self.load_rate)
        gain = 1 - then_s / now_s
        where = "" if other.shape != current.shape else " in other places"
        told = (
            f"{_shape(other)}{where} would take {then_s * 1000:.1f} ms a token against "
            f"{now_s * 1000:.1f} ({gain:+.0%}), after {pause_s:.1f} s of loading"
        )
        if force or (gain >= MIN_GAIN and gain * HORIZON_S > pause_s):
            return Decision(told, other, prepare=True)
        spares = len(members) - len(current.workers)
        return Decision(f"{told}: not worth it, {spares} spare")

    def _best(
        self,
        members: Sequence[Candidate],
        holders: Mapping[str, tuple[int, int]],
        why: str,
        broken: Plan | None = None,
    ) -> Decision:
        """The fastest shape that the members can fill and hold.

        broken: the plan that no longer runs; then the loading time counts as well.
        """
        candidates: list[tuple[float, float, int, Plan]] = []
        refused = ""
        for stages, shards in self._shapes(len(members)):
            draft = self._layout(stages, shards)
            workers, missing = assign(draft, members, holders)
            if missing:
                continue
            by_id = {member.id: member for member in members}
            chosen = [by_id[worker] for worker in workers]
            plan, problem = self._fitting(stages, shards, chosen)
            if problem:
                refused = f"{_shape(plan)} does not fit: {problem}"
                continue
            pause_s = load_s(self.arch, plan, broken, self.load_rate) if broken else 0.0
            candidates.append((token_s(self.arch, plan, chosen), pause_s, stages, plan))
        if not candidates:
            return Decision(f"{why}; {refused or 'no members for any plan'}")
        fastest = min(candidates)[0]
        best = min(candidates, key=lambda item: (item[0] / fastest + item[1] / HORIZON_S, item[2]))
        return Decision(why, best[3])

    def _shapes(self, num_members: int) -> list[tuple[int, int]]:
        """All shapes that this many members can fill and the model can be cut into."""
        return [
            (stages, shards)
            for stages in range(1, min(num_members, self.arch.total_layers) + 1)
            for shards in range(1, min(num_members // stages, self.arch.max_shards) + 1)
        ]

    def _fitting(self, stages: int, shards: int, workers: Sequence[Candidate]) -> tuple[Plan, str]:
        """See `fitting_plan`; for this wish."""
        plan, problem = fitting_plan(self.arch, self._layout, stages, shards, workers)
        return replace(plan, revision=self.wish.revision), problem

    def _layout(
        self,
        stages: int,
        shards: int,
        weights: Sequence[Sequence[float]] | None = None,
        by_memory: bool = False,
    ) -> Plan:
        key = (stages, shards, str(weights), by_memory)
        if key not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = self.layout(stages, shards, weights, by_memory)
        return self._layouts[key]

    def _placed(self, plan: Plan, workers: tuple[str, ...]) -> Plan:
        return replace(plan, workers=workers, revision=self.wish.revision)


def fitting_plan(
    arch: Architecture, layout: Layout, stages: int, shards: int, workers: Sequence[Candidate]
) -> tuple[Plan, str]:
    """A plan weighted by speed, or by memory if that does not fit; and `overfull` of it."""
    tried: list[tuple[Plan, str]] = []
    ids = tuple(worker.id for worker in workers)
    for weigh in (shard_weights, memory_weights):
        weights = weigh(workers)
        rows = [weights[at * shards : (at + 1) * shards] for at in range(stages)]
        plan = replace(layout(stages, shards, rows, weigh is memory_weights), workers=ids)
        tried.append((plan, overfull(arch, plan, workers)))
        if not tried[-1][1]:
            break
    return tried[-1]


def assign(
    layout: Plan, members: Sequence[Candidate], holders: Mapping[str, tuple[int, int]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(member ids in the order of the addresses, addresses that no member can take).

    An address goes to its holder, else to a member pinned to it, else to an elastic member without
    an address, else to an elastic member whose address the layout does not have; among equals a
    stage's shards are put on one host if possible, else on hosts that are near each other. Pinned
    members take no other address. Only if that leaves an address empty do elastic holders give way
    to pinned members.
    """
    keep = _assign(layout, members, holders, holders)
    if not keep[1]:
        return keep
    pinned = {member.id for member in members if member.pinned}
    staying = {worker: place for worker, place in holders.items() if worker in pinned}
    move = _assign(layout, members, staying, holders)
    return move if len(move[1]) < len(keep[1]) else keep


def _assign(
    layout: Plan,
    members: Sequence[Candidate],
    staying: Mapping[str, tuple[int, int]],
    holders: Mapping[str, tuple[int, int]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """staying: the holders that keep their address before all other rules."""
    names = {address: str(Address(*address)) for address in layout.addresses()}
    rules: list[Callable[[Candidate, tuple[int, int]], bool]] = [
        lambda m, a: staying.get(m.id) == a and m.pinned in ("", names[a]),
        lambda m, a: m.pinned == names[a],
        lambda m, a: not m.pinned and holders.get(m.id) == a,
        lambda m, a: not m.pinned and m.id not in holders,
        lambda m, a: not m.pinned,
    ]
    free = sorted((m for m in members if not m.leaving), key=lambda m: (m.joined, m.id))
    chosen: dict[tuple[int, int], str] = {}
    hosts: dict[int, list[str]] = defaultdict(list)  # of the members of each stage
    proximity = Proximity(free)
    for fits in rules:
        for address in names:
            fitting = [m for m in free if address not in chosen and fits(m, address)]
            if not fitting:
                continue
            stage = hosts[address[0]]
            member = proximity.nearest(fitting, free, stage, layout.num_shards)
            chosen[address] = member.id
            stage.append(host_of(member))
            free.remove(member)
    missing = tuple(name for address, name in names.items() if address not in chosen)
    return tuple(chosen.get(address, "") for address in names), missing


def _shape(plan: Plan) -> str:
    return f"{len(plan.stages)}x{plan.num_shards}"
