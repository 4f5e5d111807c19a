"""How far members are from each other: round trips between their hosts. Pure.

Members of one host have none. Others have measured it if they have had a link. What is not known is
a default and what their round trips to Redis differ by: members that are as far from Redis as each
other are taken to be in one place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2

from skynet.planning.cost import Candidate

UNKNOWN_S = 3e-4  # between two machines of one network


def host_of(member: Candidate) -> str:
    return member.host or member.id


def measured_trip_s(one: Candidate, other: Candidate) -> float | None:
    """The round trip between two members' hosts, 0 on one host; None: not measured."""
    if host_of(one) == host_of(other):
        return 0.0
    trips = (one.trips.get(host_of(other)), other.trips.get(host_of(one)))
    return min((trip for trip in trips if trip is not None), default=None)


def expected_trip_s(one: Candidate, other: Candidate) -> float:
    """The round trip between two members, as measured or else as guessed."""
    measured = measured_trip_s(one, other)
    if measured is not None:
        return measured
    return UNKNOWN_S + abs(one.round_trip_s - other.round_trip_s)


class Proximity:
    """The distances of members, to choose those of a stage by."""

    def __init__(self, members: Iterable[Candidate]) -> None:
        # One member stands for its host.
        hosts = {host_of(member): member for member in members}
        self._steps = {
            one: {other: _steps(hosts[one], hosts[other]) for other in hosts} for one in hosts
        }

    def nearest(
        self,
        fitting: Sequence[Candidate],
        free: Sequence[Candidate],
        stage: Sequence[str],
        num_shards: int,
    ) -> Candidate:
        """The one of the fitting members to add to a stage; of equals the first.

        It is near to the hosts of the stage's members, or has as many free members near as an empty
        stage needs. Of members that are as near, one of the host with most free members.

        stage: the hosts of the stage's members so far.
        """
        counts = Counter(host_of(member) for member in free)
        spread = {host: self._spread(host, counts, stage, num_shards) for host in counts}

        def rank(member: Candidate) -> tuple[int, int]:
            return spread[host_of(member)], -counts[host_of(member)]

        return min(fitting, key=rank)

    def _spread(
        self, host: str, counts: Counter[str], stage: Sequence[str], num_shards: int
    ) -> int:
        """The largest distance between a stage's members if one of this host is the next."""
        steps = self._steps[host]
        if stage:
            return max(steps[other] for other in stage)
        needed = num_shards
        for distance, other in sorted((steps[other], other) for other in counts):
            needed -= counts[other]
            if needed <= 0:
                return distance
        return 0  # too few members: any is as good


def _steps(one: Candidate, other: Candidate) -> int:
    """A distance: 0 on one host, else round trips by powers of two; what differs less is noise."""
    trip_s = expected_trip_s(one, other)
    if host_of(one) == host_of(other):
        return 0
    return max(1, 8 + round(log2(max(trip_s, 1e-6) / UNKNOWN_S)))
