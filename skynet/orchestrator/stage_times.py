"""Where the time of each stage and shard goes, from what members report of themselves.

Members add up the compute and the exchange wait of their spans, and report the sums with their
lease. The engine knows how long steps took: what is neither compute nor exchange is chords.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from skynet.engine.step_timing import StepTotals
from skynet.errors import ConfigurationError
from skynet.orchestrator.numbers import Numbers
from skynet.store.members import Member
from skynet.store.metrics import Seen, ShardTime, StageTime
from skynet.wire.keys import Address


class Spent(NamedTuple):
    """Seconds of a shard, and its spans."""

    compute_s: float = 0.0
    exchange_s: float = 0.0
    spans: int = 0

    def plus(self, other: Spent) -> Spent:
        return Spent(
            self.compute_s + other.compute_s,
            self.exchange_s + other.exchange_s,
            self.spans + other.spans,
        )


class StageTimes:
    """Adds up what members report.

    seen: by member, so that nothing is counted twice, by the next leader neither.
    """

    def __init__(self, seen: dict[str, Seen] | None = None) -> None:
        self.seen = dict(seen or {})
        self._window: dict[Address, Spent] = defaultdict(Spent)
        self._chords: dict[int, float] = defaultdict(float)
        self._before = StepTotals()

    def follow(self, members: Iterable[Member], totals: StepTotals, numbers: Numbers) -> None:
        """Count what was reported since the last call.

        totals: of the engine's finished steps; a new engine starts at zero.
        """
        spent = {}
        listed = [(member, place) for member in members if (place := _place(member)) is not None]
        for member, place in listed:
            now = Seen(member.compute_s, member.exchange_s, member.steps)
            before = self.seen.get(member.id, now)
            spent[place] = Spent(
                max(0.0, now.compute_s - before.compute_s),
                max(0.0, now.exchange_s - before.exchange_s),
                max(0, now.spans - before.spans),
            )
            self.seen[member.id] = now
        live = {member.id for member, _ in listed}
        self.seen = {name: seen for name, seen in self.seen.items() if name in live}
        since, self._before = totals.since(self._before), totals
        steps = since.steps
        for place, item in spent.items():
            self._window[place] = self._window[place].plus(item)
            numbers.add("shard_compute_seconds", steps, item.compute_s, *place)
            numbers.add("exchange_wait_seconds", steps, item.exchange_s, *place)
        for stage, shards in _by_stage(spent).items():
            slowest = max(shards.values(), key=lambda item: item.compute_s)
            chords_s = since.chord_s * max(item.spans for item in shards.values())
            self._chords[stage] += chords_s
            busy_s = slowest.compute_s + slowest.exchange_s
            numbers.add("step_seconds", steps, busy_s + chords_s, stage)

    def take(self, seconds: float) -> tuple[StageTime, ...]:
        """The shares of the `seconds` since the last call."""
        stages = []
        for stage, shards in sorted(_by_stage(self._window).items()):
            slowest = max(shards, key=lambda shard: shards[shard].compute_s)
            compute = min(1.0, shards[slowest].compute_s / seconds)
            exchange = min(1.0 - compute, shards[slowest].exchange_s / seconds)
            chord = min(1.0 - compute - exchange, self._chords[stage] / seconds)
            chord = max(0.0, chord)
            times = (
                ShardTime(
                    shard,
                    round(min(1.0, item.compute_s / seconds), 4),
                    round(min(1.0, item.exchange_s / seconds), 4),
                )
                for shard, item in sorted(shards.items())
            )
            rounded = round(compute, 4), round(exchange, 4), round(chord, 4)
            idle = round(max(0.0, 1.0 - sum(rounded)), 4)
            stages.append(StageTime(stage, *rounded, idle, slowest, tuple(times)))
        self._window.clear()
        self._chords.clear()
        return tuple(stages)


def _place(member: Member) -> Address | None:
    """Where a member works, or None."""
    try:
        return Address.parse(member.address)
    except ConfigurationError:
        return None


def _by_stage(spent: dict[Address, Spent]) -> dict[int, dict[int, Spent]]:
    stages: dict[int, dict[int, Spent]] = defaultdict(dict)
    for place, item in spent.items():
        stages[place.stage][place.shard] = item
    return stages
