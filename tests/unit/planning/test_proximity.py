"""Shards of a stage are placed close together, by what is known of round trips. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from plans import layout_of, plan_for

from skynet.models.registry import load_architecture
from skynet.planning.compute import Work
from skynet.planning.cost import Candidate
from skynet.planning.placement import Planner, Wish, assign
from skynet.planning.plan import Plan
from skynet.planning.proximity import UNKNOWN_S, expected_trip_s, measured_trip_s
from skynet.planning.timing import DIRECT, REDIS, Costs, step_time

ARCH = load_architecture(
    {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 4096,
        "max_position_embeddings": 512,
    }
)
layout = layout_of(ARCH)
NEAR_S, FAR_S = 2e-4, 8e-3
Site = Callable[[str], int]


def planner(shape: tuple[int, int]) -> Planner:
    return Planner(ARCH, layout, Wish(shape, False, 1))


def sites(count: int, num_sites: int, seed: int) -> dict[str, int]:
    """Names of members in the order of joining -> the site of each, as many on each site."""
    places = [at % num_sites for at in range(count)]
    random.Random(seed).shuffle(places)
    return {f"w{number:02}": place for number, place in enumerate(places)}


def stages_of(plan: Plan) -> list[tuple[str, ...]]:
    shards = plan.num_shards
    return [plan.workers[at : at + shards] for at in range(0, len(plan.workers), shards)]


def first_plan(decider: Planner, members: Sequence[Candidate]) -> Plan:
    plan = decider.decide(None, members).plan
    assert plan is not None
    return plan


@pytest.mark.parametrize(("count", "num_sites"), [(4, 2), (16, 4), (64, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_members_as_far_from_redis_as_each_other_make_up_a_stage(
    count: int, num_sites: int, seed: int
) -> None:
    # Given members of several sites, which have joined in any order and have had no links
    place = sites(count, num_sites, seed)
    members = [Candidate(name, round_trip_s=5e-3 * place[name] + 2e-4) for name in place]
    # When they are placed
    shape = (num_sites, count // num_sites)
    plan = first_plan(planner(shape), members)
    # Then each stage is on one site, and asking again changes nothing
    assert all(len({place[worker] for worker in stage}) == 1 for stage in stages_of(plan))
    assert first_plan(planner(shape), members).workers == plan.workers
    assert planner(shape).decide(plan, members).plan is None


def test_one_host_is_nearer_than_any_other() -> None:
    # Given two hosts of two members, which Redis answers at different speeds
    trips = {"a": ("x", 2e-4), "b": ("y", 2e-4), "c": ("x", 9e-3), "d": ("y", 9e-3)}
    members = [
        Candidate(name, host=host, round_trip_s=trip) for name, (host, trip) in trips.items()
    ]
    # Then each stage is on one host
    assert assign(layout(2, 2), members, {})[0] in (("a", "c", "b", "d"), ("b", "d", "a", "c"))


def test_a_measured_round_trip_outweighs_a_guess() -> None:
    # Given members that are all as far from Redis, and a link of one pair
    near, far = Candidate("a", trips={"c": NEAR_S, "b": FAR_S}), Candidate("b")
    other = Candidate("c")
    # Then both ends know of it, and other pairs have a default
    assert measured_trip_s(near, other) == measured_trip_s(other, near) == NEAR_S
    assert measured_trip_s(far, other) is None
    assert expected_trip_s(far, other) == UNKNOWN_S
    # And shards are placed by it
    assert assign(layout(1, 2), [near, far, other], {})[0] == ("a", "c")


def test_sums_wait_for_the_measured_round_trip_of_direct_links() -> None:
    # Given two hosts that have had a link, each far from Redis
    members = [Candidate("a", round_trip_s=FAR_S, trips={"b": NEAR_S}), Candidate("b")]
    plan = plan_for(ARCH, 1, 2)

    def sums_s(link: str, workers: Sequence[Candidate]) -> float:
        return step_time(ARCH, plan, workers, Work(), Costs(link=link)).sums_s

    # Then sums are expected to take that trip, unless they are asked to go through Redis
    strangers = [replace(member, trips={}) for member in members]
    saved = sums_s(DIRECT, strangers) - sums_s(DIRECT, members)
    assert saved == pytest.approx(ARCH.first_sum(ARCH.num_layers) * (FAR_S - NEAR_S))
    assert sums_s("auto", members) == sums_s(DIRECT, members)
    assert sums_s("auto", strangers) == sums_s(REDIS, members)


class Network:
    """Members whose links show how far they are, from one plan to the next."""

    def __init__(self, place: dict[str, int], seed: int) -> None:
        self.place, self.noise = place, random.Random(seed)
        self.members = {name: Candidate(name, round_trip_s=1e-3) for name in place}

    def run(self, plan: Plan) -> None:
        """Each pair of a stage measures its round trip; the later shard keeps the least."""
        for stage in stages_of(plan):
            for one, other in combinations(stage, 2):
                true_s = NEAR_S if self.place[one] == self.place[other] else FAR_S
                trip_s = true_s * (1 + 0.3 * self.noise.random())
                member = self.members[other]
                trips = {**member.trips, one: min(trip_s, member.trips.get(one, trip_s))}
                self.members[other] = replace(member, trips=trips)


@pytest.mark.parametrize(("count", "num_sites"), [(4, 2), (16, 4), (64, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_what_links_measure_brings_shards_together_and_then_nothing_moves(
    count: int, num_sites: int, seed: int
) -> None:
    # Given members of several sites that Redis is as far from, so that nothing is known of them
    network = Network(sites(count, num_sites, seed), seed)
    decider = planner((num_sites, count // num_sites))
    plan = first_plan(decider, list(network.members.values()))
    # When plans run one after the other
    moves = 0
    for _ in range(count):
        network.run(plan)
        decision = decider.decide(plan, list(network.members.values()))
        if decision.plan is None:
            break
        assert decision.prepare, decision.reason
        moves, plan = moves + 1, decision.plan
    # Then they settle
    else:
        pytest.fail(f"{moves} moves, and no end")
    # And noise moves nothing any more
    for _ in range(10):
        network.run(plan)
        assert decider.decide(plan, list(network.members.values())).plan is None
    # And each stage is on one site
    assert all(len({network.place[worker] for worker in stage}) == 1 for stage in stages_of(plan))


@pytest.mark.parametrize(("apart_s", "moves"), [(2.4e-4, False), (FAR_S, True)])
def test_a_running_plan_is_moved_only_where_it_pays(apart_s: float, moves: bool) -> None:
    # Given two shards that are apart, and a spare that is nearer to the first one
    spare = Candidate("c", trips={"a": NEAR_S})
    members = [Candidate("a"), Candidate("b", trips={"a": apart_s})]
    decider = planner((1, 2))
    plan = first_plan(decider, members)
    assert plan.workers == ("a", "b")
    # When the spare is known
    decision = decider.decide(plan, [*members, spare])
    # Then it takes the place if that pays
    assert (decision.plan is not None) is moves
    if decision.plan is not None:
        assert decision.plan.workers == ("a", "c")
        assert "in other places" in decision.reason
