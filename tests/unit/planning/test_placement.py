"""Which plan should be in force: joins, losses, leaves, shapes and their reasons. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import layout_of, plan_for

from skynet.models.registry import load_architecture
from skynet.planning.cost import WORKER_BYTES, Candidate, load_s, overfull, shard_weights
from skynet.planning.memory import shard_weight_bytes, slot_bytes
from skynet.planning.placement import Decision, Planner, Wish, assign
from skynet.planning.plan import Plan
from skynet.planning.timing import token_s
from skynet.wire.keys import Address

ARCH = load_architecture(
    {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 4096,
        "max_position_embeddings": 512,
    }
)
layout = layout_of(ARCH)


def planner(shape: tuple[int, int] | None = (2, 2), fixed: bool = False) -> Planner:
    return Planner(ARCH, layout, Wish(shape, fixed, 1))


def elastic(*ids: str, **fields: Any) -> list[Candidate]:
    """Members that take any place, each on another host."""
    return [Candidate(name, host=f"host-{name}", **fields) for name in ids]


def pinned(*addresses: str) -> list[Candidate]:
    return [Candidate(f"at-{name}", host=f"host-{name}", pinned=name) for name in addresses]


def in_force(plan: Plan | None) -> Plan:
    if plan is None:
        raise AssertionError("there is no plan")
    return plan


def started(members: list[Candidate], **options: Any) -> tuple[Planner, Plan]:
    """A planner, and the first plan it makes for these members."""
    decider = planner(**options)
    return decider, in_force(decider.decide(None, members, settled_for_s=10).plan)


def test_the_shape_asked_for_waits_for_its_members_and_says_which() -> None:
    # Given three members for four places
    decision = planner().decide(None, elastic("a", "b", "c"))
    # Then there is no plan, and the place that is missing is named
    assert decision.plan is None
    assert decision.missing == ("stage1.shard1",)
    assert "stage1.shard1" in decision.reason


def test_pinned_members_have_their_place_and_others_fill_in() -> None:
    # Given two that are bound to a place, and two that take any
    members = [*elastic("a", "b"), *pinned("stage1.shard1", "stage0.shard0")]
    # When there is a plan
    _, plan = started(members)
    # Then each bound one has its place
    placed = {worker: str(Address(*place)) for worker, place in plan.placed().items()}
    assert placed["at-stage1.shard1"] == "stage1.shard1"
    assert placed["at-stage0.shard0"] == "stage0.shard0"
    assert sorted(placed) == sorted(member.id for member in members)


def test_the_shards_of_a_stage_are_put_on_one_host() -> None:
    # Given members of three hosts that have joined in turns
    hosts = {"a": "x", "b": "y", "c": "z", "d": "x", "e": "z"}
    members = [Candidate(name, host=host) for name, host in hosts.items()]
    # When they are placed / Then each stage is on one host, and the single one is left
    workers, missing = assign(layout(2, 2), members, {})
    assert not missing
    assert [[hosts[w] for w in workers[:2]], [hosts[w] for w in workers[2:]]] == [
        ["x", "x"],
        ["z", "z"],
    ]
    # And a member that takes over a place comes from the host of the others, if it can
    spare, near = Candidate("f", host="y"), Candidate("g", host="z")
    left = [m for m in members if m.id not in ("b", workers[3])]
    holders = dict(zip(workers, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True))
    assert assign(layout(2, 2), [*left, spare, near], holders)[0] == (*workers[:3], "g")


def test_a_spare_replaces_a_lost_member_and_no_other_moves() -> None:
    # Given a plan, and a spare
    members = elastic("a", "b", "c", "d", "e")
    decider, plan = started(members)
    assert "e" not in plan.workers
    # When one is lost
    decision = decider.decide(plan, [m for m in members if m.id != "b"])
    # Then the spare has its place at once, and all others keep their places
    after = in_force(decision.plan)
    assert not decision.prepare
    assert after.stages == plan.stages
    assert after.workers == tuple("e" if w == "b" else w for w in plan.workers)


def test_an_elastic_holder_makes_room_for_a_bound_one_where_it_is_needed() -> None:
    # Given an elastic member in a place to which another one, that came later, is bound
    early = [*elastic("a"), *pinned("stage0.shard1")]
    decider, plan = started(early, shape=(1, 2))
    assert plan.workers == ("a", "at-stage0.shard1")
    members = [*early, *pinned("stage0.shard0")]
    assert decider.decide(plan, members).plan is None
    # When the other place is lost, which the bound one cannot take
    after = in_force(decider.decide(plan, [members[0], members[2]]).plan)
    # Then the elastic one moves there
    assert after.workers == ("at-stage0.shard0", "a")


def test_a_leaving_member_is_replaced_while_the_current_plan_runs() -> None:
    # Given a plan and a spare
    members = elastic("a", "b", "c", "d", "e")
    decider, plan = started(members)
    # When one is leaving
    leaving = [replace(m, leaving=m.id == "c") for m in members]
    decision = decider.decide(plan, leaving)
    # Then its successor is prepared first
    assert decision.prepare
    assert "c" not in in_force(decision.plan).workers


def test_without_a_spare_a_smaller_shape_follows_after_a_while() -> None:
    # Given a plan of four
    members = elastic("a", "b", "c", "d")
    decider, plan = started(members)
    decider.load_rate = 1e7
    three = members[:3]
    # When one is lost, at first its replacement is waited for
    first = decider.decide(plan, three, lost_for_s=0.0)
    assert first.plan is None
    assert first.missing
    # Then, after as long as loading would take, a shape for three is chosen
    then = in_force(decider.decide(plan, three, lost_for_s=60.0).plan)
    assert len(then.workers) == 3
    assert sorted(then.workers) == ["a", "b", "c"]
    # And when a fourth is there, it is the shape asked for again, prepared first
    back = decider.decide(then, elastic("a", "b", "c", "x"))
    assert back.prepare
    assert in_force(back.plan).shape == (2, 2)


def test_a_lost_member_is_not_waited_for_if_loading_is_fast() -> None:
    # Given a plan of four that load fast
    members = elastic("a", "b", "c", "d")
    decider, plan = started(members)
    decider.load_rate = 1e9
    # When one is lost / Then the others go on at once
    assert decider.decide(plan, members[:3], lost_for_s=0.0).plan is not None


def test_a_fixed_shape_is_never_changed() -> None:
    # Given a plan of a fixed shape
    members = elastic("a", "b", "c", "d")
    decider, plan = started(members, fixed=True)
    # When one is lost for however long
    decision = decider.decide(plan, members[:3], lost_for_s=1e6)
    # Then nothing but waiting, with the reason
    assert decision.plan is None
    assert "fixed" in decision.reason


def test_a_leaving_member_without_a_successor_leaves_an_empty_place() -> None:
    # Given a fixed plan without a spare
    members = elastic("a", "b", "c", "d")
    decider, plan = started(members, fixed=True)
    # When one is leaving
    leaving = [replace(m, leaving=m.id == "c") for m in members]
    after = in_force(decider.decide(plan, leaving).plan)
    # Then its place is empty, and filled when a member joins
    assert after.workers.count("") == 1
    assert "c" not in after.workers
    assert decider.decide(after, [m for m in members if m.id != "c"]).plan is None
    filled = in_force(decider.decide(after, [*members[:2], members[3], *elastic("e")]).plan)
    assert sorted(filled.workers) == ["a", "b", "d", "e"]


def test_a_join_that_does_not_pay_leaves_a_spare_and_says_why() -> None:
    # Given any shape, two members on one host of two cores, and a plan for them
    one_host = [Candidate(n, host="h", cores=2, speed=1e9) for n in ("a", "b")]
    decider, plan = started(one_host, shape=None)
    # When a third joins on the same host, which adds no core
    decision = decider.decide(plan, [*one_host, Candidate("c", host="h", cores=2, speed=1e9)])
    # Then nothing changes, with the numbers
    assert decision.plan is None
    assert "spare" in decision.reason


def test_a_join_that_pays_changes_the_shape_and_is_prepared() -> None:
    # Given any shape, and one slow member
    decider, plan = started(elastic("a", speed=1e8), shape=None)
    assert plan.shape == (1, 1)
    # When another host joins
    decision = decider.decide(plan, elastic("a", "b", speed=1e8))
    # Then both compute
    assert decision.prepare
    assert sorted(in_force(decision.plan).workers) == ["a", "b"]


def test_a_join_is_not_worth_a_pause_that_is_too_long() -> None:
    # Given the same, with members that load slowly
    decider, plan = started(elastic("a", speed=1e8), shape=None)
    decider.load_rate = 1e4
    members = elastic("a", "b", speed=1e8)
    # When another joins / Then it stays a spare, unless a rebalance is requested
    assert decider.decide(plan, members).plan is None
    assert decider.decide(plan, members, force=True).plan is not None


def test_a_shape_that_does_not_fit_is_not_chosen() -> None:
    # Given members that cannot hold the model alone
    slots = plan_for(ARCH, 1, 1)
    small = elastic("a", "b", free_bytes=420 * 2**20)
    assert "MiB" in overfull(ARCH, slots, small[:1])
    # When two of three are left
    decider, plan = started(elastic("a", "b", "c", free_bytes=420 * 2**20), shape=(1, 3))
    decision = decider.decide(plan, small[:1], lost_for_s=1e6)
    # Then there is no plan, and the reason has the numbers
    assert decision.plan is None
    assert "does not fit" in decision.reason


def test_a_member_with_more_memory_holds_more_where_needed() -> None:
    # Given two members of equal speed, one with too little memory for half of a bigger model
    whole = replace(layout(1, 1), workers=("a",))
    need = shard_weight_bytes(ARCH, whole, 0, 0) + slot_bytes(ARCH, whole, 0, 0)
    small = Candidate("a", host="small", free_bytes=WORKER_BYTES + need // 4)
    large = Candidate("b", host="large", free_bytes=WORKER_BYTES + need)
    decider = planner((1, 2))
    # When a shape is chosen that needs both
    plan, problem = decider._fitting(1, 2, [small, large])
    # Then each holds what fits in its memory
    assert problem == ""
    assert not overfull(ARCH, plan, [small, large])
    first, second = plan.stages[0].shards
    assert first.columns.size + first.heads.size < second.columns.size + second.heads.size


def test_another_target_is_followed_when_possible() -> None:
    # Given a plan for one wish
    members = elastic("a", "b", "c", "d")
    _, plan = started(members)
    plan = replace(plan, revision=1)
    # When another shape is asked for
    other = Planner(ARCH, layout, Wish((1, 4), False, 2))
    # Then it is put in force, or waits for its members
    assert in_force(other.decide(plan, members).plan).shape == (1, 4)
    assert other.decide(plan, members[:3]).missing == ("stage0.shard3",)


def test_faster_members_get_more() -> None:
    # Given a host twice as fast as another
    fast, slow = elastic("a", speed=2e9)[0], elastic("b", speed=1e9)[0]
    assert shard_weights([fast, slow]) == [1.0, 0.5]
    # When both share a stage
    plan = layout(1, 2, [[1.0, 0.5]])
    first, second = plan.stages[0].shards
    # Then heads and columns follow their speed
    assert first.columns.size + second.columns.size == ARCH.intermediate_size
    assert first.heads.size > second.heads.size
    assert token_s(ARCH, plan, [fast, slow]) < token_s(ARCH, layout(1, 2), [fast, slow])


def test_predicted_loading_excludes_weights_that_are_loaded() -> None:
    # Given a plan and another in which one worker keeps its slice and one moves
    before = replace(layout(1, 2), workers=("a", "b"))
    # Then nothing is predicted where nothing changes, and less than all where some is there
    assert load_s(ARCH, before, before) == 0
    wider = replace(layout(1, 3), workers=("a", "b", "c"))
    assert 0 < load_s(ARCH, wider, before) <= load_s(ARCH, wider, None)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    members=st.lists(
        st.tuples(
            st.sampled_from(["", "stage0.shard0", "stage0.shard1", "stage1.shard0"]),
            st.booleans(),
        ),
        max_size=10,
    ),
    data=st.data(),
)
def test_each_place_goes_to_one_member_that_may_have_it(
    shape: tuple[int, int], members: list[tuple[str, bool]], data: st.DataObject
) -> None:
    # Given members, some bound, some leaving, some with a place
    candidates = [
        Candidate(f"m{at}", pinned=pin, leaving=leaving)
        for at, (pin, leaving) in enumerate(members)
    ]
    plan = layout(*shape)
    places = data.draw(st.permutations(list(plan.addresses())))
    holders = dict(zip((m.id for m in candidates), places, strict=False))
    # When places are given
    workers, missing = assign(plan, candidates, holders)
    # Then each place has one worker or is missing, no worker has two, and none has a forbidden one
    names = [str(Address(*address)) for address in plan.addresses()]
    given_ = [worker for worker in workers if worker]
    assert len(given_) == len(set(given_))
    assert [n for n, w in zip(names, workers, strict=True) if not w] == list(missing)
    by_id = {member.id: member for member in candidates}
    for name, worker in zip(names, workers, strict=True):
        if worker:
            assert not by_id[worker].leaving
            assert by_id[worker].pinned in ("", name)
    # And a place is missing only if no worker is left for it
    idle = [m for m in candidates if m.id not in given_ and not m.leaving]
    assert not (missing and any(not m.pinned for m in idle))
    assert not any(m.pinned in missing for m in idle)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_after_any_loss_there_is_a_plan_for_the_other_members(lost: int) -> None:
    # Given a plan of four elastic members / When some are lost / Then the others go on
    members = elastic("a", "b", "c", "d")
    decider, plan = started(members)
    decision: Decision = decider.decide(plan, members[lost:], lost_for_s=1e6)
    assert set(in_force(decision.plan).workers) <= {m.id for m in members[lost:]}
