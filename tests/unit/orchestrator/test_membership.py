"""Live members; joins and losses, each reported once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from engine_fakes import tiny_plan

from skynet.orchestrator.membership import BROKEN_S, COOL_S, FAILED_S, STARTING_S, Membership
from skynet.planning.cost import WORKER_BYTES
from skynet.store.members import FAILED, LOADING, READY, SPARE, Member, Members
from skynet.wire.keys import ORCHESTRATOR_QUEUE
from skynet.wire.protocol import PROTOCOL, UNVERSIONED

MIB = 2**20


class Leases:
    """A fake of `Members`."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.closed: set[int] = set()

    def all(self) -> list[Member]:
        return list(self.members.values())

    def broken(self, members: list[Member]) -> set[str]:
        return {member.id for member in members if member.connection in self.closed}


class Room:
    """A membership over these leases, with a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.leases = Leases()
        self.events: list[tuple[str, str]] = []
        self.membership = Membership(
            cast(Members, self.leases),
            lambda kind, text: self.events.append((kind, text)),
            self.clock,
        )

    def clock(self) -> float:
        return self.now

    def join(self, name: str, **fields: Any) -> Member:
        made: dict[str, Any] = {"address": "", "speed": 5e9, "state": SPARE, "host": "here"}
        made |= {"connection": len(self.leases.members) + 1} | fields
        member = Member(name, f"{name}@here", made.pop("address"), made.pop("host"), 7, **made)
        self.leases.members[name] = member
        return member

    def look(self, after_s: float = 0.0) -> list[tuple[str, str]]:
        """The events of one more look."""
        self.now += after_s
        before = len(self.events)
        self.membership.look()
        return self.events[before:]


@pytest.fixture
def room() -> Room:
    return Room()


def test_joins_and_losses_are_reported_once(room: Room) -> None:
    # Given a member, and an orchestrator, which is not a shard
    room.join("a", address="stage0.shard0")
    room.join("o", address=ORCHESTRATOR_QUEUE)
    # When members are looked at / Then the join is reported once
    assert room.look() == [("joined", "stage0.shard0 (a), pid 7 on here")]
    assert room.look() == []
    assert set(room.membership.live) == {"a"}
    # And when its lease has run out, too
    del room.leases.members["a"]
    assert room.look() == [("lost", "stage0.shard0 (a)")]
    assert room.look() == []


def test_a_leaving_member_is_not_lost(room: Room) -> None:
    # Given a member that was told to leave
    member = room.join("a", pinned="stage1.shard0")
    room.look()
    member = room.join("a", pinned="stage1.shard0", leaving=True)
    assert room.look() == [("leaving", "stage1.shard0 (a)")]
    assert room.look() == []
    # When it is gone / Then it has left
    del room.leases.members[member.id]
    assert room.look() == [("left", "stage1.shard0 (a)")]


def test_a_member_that_leaves_before_it_was_seen_is_reported_in_order(room: Room) -> None:
    # Given a member that joined and was told to leave between two looks
    room.join("a", leaving=True)
    # When / Then
    assert [kind for kind, _ in room.look()] == ["joined", "leaving"]


def test_a_connection_that_stays_closed_is_a_death(room: Room) -> None:
    # Given a member whose lease holds, and whose connection Redis has seen close
    room.join("a", connection=4)
    room.look()
    room.leases.closed.add(4)
    # When it is looked at for half a second / Then it lives so long, then it is lost, once
    assert room.look() == []
    assert room.look(BROKEN_S / 2) == []
    assert room.look(BROKEN_S / 2) == [("lost", "spare (a)")]
    assert room.look(BROKEN_S) == []
    assert room.membership.live == {}


def test_a_member_that_reconnects_in_time_is_not_lost(room: Room) -> None:
    # Given a member whose connection has closed
    room.join("a", connection=4)
    room.look()
    room.leases.closed.add(4)
    room.look()
    # When it opens another before half a second is over
    room.look(BROKEN_S / 2)
    room.join("a", connection=5)
    # Then it lives on, however long
    assert room.look(BROKEN_S) == []
    assert room.look(BROKEN_S) == []
    assert set(room.membership.live) == {"a"}
    assert room.membership.reconnected


def test_each_broken_connection_has_a_separate_deadline(room: Room) -> None:
    # Given a member whose second connection breaks right after its first
    room.join("a", connection=4)
    room.leases.closed.update((4, 5))
    room.look()
    room.look(BROKEN_S / 2)
    room.join("a", connection=5)
    # When half a second is over since the first broke, not since the second
    assert room.look(BROKEN_S / 2) == []
    # Then it lives still, and is lost when that is over
    assert room.look(BROKEN_S) == [("lost", "spare (a)")]


def test_settled_for_is_the_time_since_the_last_join_or_loss(room: Room) -> None:
    # Given a member that came
    room.join("a")
    room.look(5)
    assert room.membership.settled_for_s == 0
    # When only its state changes / Then it is settled
    room.join("a", state=READY, address="stage0.shard0")
    room.look(3)
    assert room.membership.settled_for_s == 3
    # And not when it goes
    room.leases.members.clear()
    room.look(1)
    assert room.membership.settled_for_s == 0


def test_candidates_are_those_that_are_up(room: Room) -> None:
    # Given two on one host, one with weights, one on another, and one that is still starting
    room.join("a", free_bytes=1000 * MIB, weight_bytes=300 * MIB, pinned="stage0.shard0")
    room.join("b", free_bytes=900 * MIB)
    room.join("c", host="there", free_bytes=500 * MIB, leaving=True)
    room.join("d", host="there", speed=0.0, free_bytes=500 * MIB)
    room.look()
    # When they are candidates
    candidates = {candidate.id: candidate for candidate in room.membership.candidates()}
    # Then memory that they occupy counts as free, by host
    assert set(candidates) == {"a", "b", "c"}
    here = 900 * MIB + 300 * MIB + 2 * WORKER_BYTES
    assert [candidates[name].free_bytes for name in "ab"] == [here, here]
    assert candidates["c"].free_bytes == 500 * MIB + 2 * WORKER_BYTES
    assert (candidates["a"].pinned, candidates["c"].leaving) == ("stage0.shard0", True)


def test_shards_that_a_plan_waits_for_are_named_with_reasons(room: Room) -> None:
    # Given a plan of five places: one ready, one loading, one that could not load, one lost, one
    # empty
    plan = tiny_plan(1, 5).with_epoch(3)
    plan = replace(plan, workers=("a", "b", "c", "gone", ""))
    ready: dict[str, Any] = {"epoch": 3, "state": READY}
    room.join("a", address="stage0.shard0", queue="stage0.shard0", **ready)
    room.join("b", epoch=3, state=LOADING, weight_bytes=200, loaded_bytes=50)
    room.join("c", epoch=3, state="failed", problem="TileMissing: x")
    room.look()
    # When the missing shards are listed / Then each has its reason
    assert room.membership.not_ready(plan) == [
        "stage0.shard1 (loading 25%)",
        "stage0.shard2 (TileMissing: x)",
        "stage0.shard3 (lost)",
        "stage0.shard4",
    ]


def test_a_queue_that_another_still_consumes_is_waited_for(room: Room) -> None:
    # Given a ready worker, and one that had its place before and still consumes its queue
    plan = tiny_plan(1, 1).with_epoch(3)
    plan = replace(plan, workers=("a",))
    room.join("a", address="stage0.shard0", queue="stage0.shard0", epoch=3, state=READY)
    room.join("b", queue="stage0.shard0")
    room.look()
    # When / Then
    assert room.membership.not_ready(plan) == ["stage0.shard0 (still consumed by b)"]
    # And when it has let go, nothing is missing
    room.join("b", queue="")
    room.look()
    assert room.membership.not_ready(plan) == []


def test_shards_that_have_not_loaded_the_next_plan(room: Room) -> None:
    # Given a plan to come: one has loaded, one could not, one is gone
    plan = tiny_plan(1, 3).with_epoch(4)
    plan = replace(plan, workers=("a", "b", "gone"))
    room.join("a", prepared=4)
    room.join("b", prepared=3, problem="TileMissing: x")
    room.look()
    # When / Then
    assert room.membership.not_prepared(plan) == ["stage0.shard1: TileMissing: x", "stage0.shard2"]


def test_the_load_rate_is_that_of_the_fastest_member(room: Room) -> None:
    # Given members of which one has never loaded, one had it all, and two were measured
    room.join("a")
    room.join("b", weight_bytes=1000, kept_bytes=1000, load_s=1.0)
    room.join("c", weight_bytes=1000, kept_bytes=500, load_s=1.0)
    room.join("d", weight_bytes=1000, load_s=1.0)
    assert room.membership.load_rate() == 0.0
    room.look()
    # When / Then weights that were loaded before do not count
    assert room.membership.load_rate() == 1000.0


def test_a_member_that_keeps_failing_is_left_out_for_a_while(room: Room) -> None:
    # Given a live member that cannot load its slice
    room.join("a", state=FAILED, problem="OutOfMemoryError: no")
    room.look()
    assert room.look(FAILED_S / 2) == []
    # When that lasts / Then others may have its place
    assert room.look(FAILED_S / 2) == [("lost", "spare (a)")]
    room.join("a", state=SPARE)
    assert room.look(COOL_S / 2) == []
    # And it may try again later
    assert [kind for kind, _ in room.look(COOL_S)] == ["joined"]


def test_a_member_that_never_comes_up_is_not_waited_for(room: Room) -> None:
    # Given a member that starts
    room.join("a", speed=0.0, joined=50.0, renewed=51.0)
    room.look()
    assert room.membership.coming
    # When it still does after long
    room.join("a", speed=0.0, joined=50.0, renewed=51.0 + STARTING_S)
    room.look()
    # Then plans do not wait for it
    assert not room.membership.coming


def test_the_latest_epoch_of_any_member(room: Room) -> None:
    # Given members of different plans
    assert room.membership.last_epoch == 0
    room.join("a", epoch=7)
    room.join("b", epoch=3, prepared=9)
    room.look()
    # When / Then
    assert room.membership.last_epoch == 9


def test_members_of_another_protocol_get_no_place(room: Room) -> None:
    # Given a member of this protocol, one of a later and one from before there was any
    room.join("a")
    room.join("later", protocol=PROTOCOL + 1, speed=0.0)
    room.join("before", protocol=UNVERSIONED)
    # When they are looked at
    reasons = dict(text.split(", pid") for _, text in room.look())
    # Then the events say why two of them get no place
    assert reasons["spare (a)"] == " 7 on here"
    assert (
        f"it speaks protocol {PROTOCOL + 1}, this orchestrator {PROTOCOL}: it gets no place"
        in (reasons["spare (later)"])
    )
    assert f"protocol {UNVERSIONED}" in reasons["spare (before)"]
    # And plans have the first only, and do not wait for one of the others to start
    assert [candidate.id for candidate in room.membership.candidates()] == ["a"]
    assert not room.membership.coming
    # And a plan waits until they have left its queues
    plan = replace(tiny_plan(), workers=("a",))
    room.leases.members["before"].queue = "stage0.shard0"
    room.look()
    assert "stage0.shard0 (still consumed by before)" in room.membership.not_ready(plan)
