"""Predicted times of steps and prompts follow the model, the shape and the network. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import plan_for

from skynet.architecture.architecture import Architecture
from skynet.architecture.quantisable import quantised
from skynet.engine.span import SpanChooser
from skynet.models.registry import load_architecture
from skynet.planning.compute import Work
from skynet.planning.cost import Candidate
from skynet.planning.memory import layer_bytes, shard_weight_bytes
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.planning.spans import CHORD_SHARE
from skynet.planning.timing import (
    DIRECT,
    REDIS,
    WAKE_S,
    Costs,
    first_token_s,
    step_time,
    token_s,
    tokens_per_s,
)
from skynet.settings import Settings

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
}
ARCH = load_architecture(SMALL)
EXPERTS = load_architecture(
    {**SMALL, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
)


def workers(count: int, **fields: Any) -> list[Candidate]:
    """Members on hosts of their own."""
    return [Candidate(f"worker{n}", **fields) for n in range(count)]


def time_of(shape: tuple[int, int], arch: Architecture = ARCH, **fields: Any) -> float:
    return token_s(arch, plan_for(arch, *shape), workers(shape[0] * shape[1], **fields))


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(shape=shapes, trip_ms=st.floats(0, 10))
def test_a_token_waits_for_each_round_trip(shape: tuple[int, int], trip_ms: float) -> None:
    # Given a shape / When the network is slower by a number of milliseconds
    stages, shards = shape
    slower = time_of(shape, round_trip_s=trip_ms / 1e3) - time_of(shape, round_trip_s=0.0)
    # Then a token is slower by a round trip for each sum, two for each chord and one at its end
    sums = ARCH.first_sum(ARCH.num_layers) if shards > 1 else 0
    assert slower == pytest.approx((sums + 2 * stages + 1) * trip_ms / 1e3, abs=1e-9)


@given(shape=shapes)
def test_the_parts_add_up_and_faster_machines_are_faster(shape: tuple[int, int]) -> None:
    # Given a step
    plan, members = plan_for(ARCH, *shape), workers(shape[0] * shape[1])
    step = step_time(ARCH, plan, members, Work())
    # Then its parts are its total
    parts = step.compute_s + step.sums_s + step.chords_s + step.orchestrator_s
    assert parts == pytest.approx(step.total_s)
    # And it is shorter where memory is faster, and longer after more tokens
    faster = [replace(member, speed=2 * member.speed) for member in members]
    assert token_s(ARCH, plan, faster) < step.total_s
    assert step_time(ARCH, plan, members, Work(context=1000)).total_s > step.total_s


def test_each_sum_waits_for_its_slowest_shard() -> None:
    # Given 9 heads in groups of 3, so that one of two shards has 6, and the other more of the MLP
    arch = load_architecture(
        {**SMALL, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    )
    plan, layers = plan_for(arch, 1, 2), Range(0, arch.num_layers)
    first, second = (layer_bytes(arch, plan, (0, shard), layers) for shard in (0, 1))
    assert (first.attention > second.attention) != (first.mlp > second.mlp)
    # When a token is predicted without anything but products
    costs, members = Costs(layer_s=0.0), workers(2, few_rows=1e15)
    seconds = step_time(arch, plan, members, Work(), costs).compute_s
    # Then it takes as long as the larger attention and the larger MLP together
    products = max(first.attention, second.attention) + max(first.mlp, second.mlp)
    head = arch.vocab_size // 2 * arch.hidden_size * 4
    assert seconds == pytest.approx((products + head) / members[0].speed, rel=0.02)


def test_smaller_weights_are_read_faster() -> None:
    plan, layouts = plan_for(ARCH), ("q8", "q4")
    times = [
        token_s(ARCH, replace(plan, weight_dtype=kept), workers(1))
        for kept in ("float32", "bfloat16")
    ]
    narrow = replace(plan, weight_dtype="bfloat16")
    times += [token_s(quantised(ARCH, kept), narrow, workers(1)) for kept in layouts]  # type: ignore[arg-type]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == len(times)


def test_codes_are_read_no_faster_than_they_become_float32() -> None:
    # Given machines with the same products of some rows, one with memory of any speed
    q4 = quantised(ARCH, "q4")
    slow, fast, endless = (
        step_time(q4, plan_for(q4, 1, 1), workers(1, speed=speed, few_rows=1e9), Work()).compute_s
        for speed in (1e7, 1e10, 1e15)
    )
    # When / Then the memory no longer matters from some speed on
    assert slow > fast == pytest.approx(endless, rel=0.05)
    # And int8 activations need no conversion
    plan = plan_for(q4, 1, 1, dtype="int8", weight_dtype="float32")
    int8 = step_time(q4, plan, workers(1, speed=1e10, few_rows=1e9), Work()).compute_s
    assert int8 < fast


def test_workers_of_one_host_share_its_cores() -> None:
    # Given two shards on two hosts of two cores, and both on one
    plan = plan_for(ARCH, 1, 2)
    apart = workers(2, cores=2)
    together = [replace(member, host="one") for member in apart]
    # Then those on one host compute at half the speed
    costs = Costs(link=REDIS)
    alone, shared = (step_time(ARCH, plan, each, Work(), costs) for each in (apart, together))
    assert shared.compute_s > alone.compute_s
    assert shared.sums_s == alone.sums_s


def test_stages_of_one_host_compute_in_turns() -> None:
    # Given a host of two cores, and a plan of one stage and of two, each of two shards
    members = workers(4, host="one", cores=2, few_rows=1e12)
    one, two = plan_for(ARCH, 1, 2), plan_for(ARCH, 2, 2)
    # Then the cores are those of one stage at a time, so that a token takes as long in both
    alone = step_time(ARCH, one, members[:2], Work()).compute_s
    assert step_time(ARCH, two, members, Work()).compute_s == pytest.approx(alone, rel=0.01)
    # But steps that are computed at the same time share them
    assert step_time(ARCH, two, members, Work(), steps=2).compute_s > 1.5 * alone


def test_workers_that_share_cores_sleep_at_sums() -> None:
    # Given two stages of two shards on one machine, with a core for each worker or for each two
    plan = plan_for(ARCH, 2, 2)
    enough, few = (
        step_time(ARCH, plan, workers(4, host="one", cores=cores), Work()) for cores in (4, 2)
    )
    # When / Then each sum waits for a shard to wake where there are too few
    assert few.sums_s == pytest.approx(enough.sums_s + few.num_sums * WAKE_S)


def test_shards_of_one_host_are_expected_to_have_direct_links() -> None:
    # Given two shards on one host, and on two
    plan = plan_for(ARCH, 1, 2)
    apart = workers(2)
    together = [replace(member, host="one") for member in apart]
    for members, link in ((together, DIRECT), (apart, REDIS)):
        # When nothing says how they exchange partials / Then it is as the exchange does by itself
        given = step_time(ARCH, plan, members, Work(), Costs(link=link))
        assert step_time(ARCH, plan, members, Work()).sums_s == given.sums_s


def test_direct_links_wait_for_no_round_trip_on_one_host() -> None:
    plan, costs = plan_for(ARCH, 1, 2), Costs(link=DIRECT)
    apart = workers(2, round_trip_s=1e-3)
    together = [replace(member, host="one", cores=2) for member in apart]
    sums = [
        step_time(ARCH, plan, apart, Work(), Costs()).sums_s,
        step_time(ARCH, plan, apart, Work(), costs).sums_s,
        step_time(ARCH, plan, together, Work(), costs).sums_s,
    ]
    assert sums == sorted(sums, reverse=True)
    assert sums[2] < sums[0] / 10


def test_large_partials_are_bound_by_the_wire() -> None:
    # Given a prompt, and shards that exchange its partials
    slow = Costs(wire_bytes_per_s=1e7)
    times = {
        shards: first_token_s(ARCH, plan_for(ARCH, 1, shards), workers(shards), 1000, slow)
        for shards in (1, 2, 4)
    }
    # Then through Redis its link carries N (N - 1) partials a sum
    assert times[1] < times[2] < times[4]
    # And on direct links a shard's link carries 2 (N - 1) / N
    direct = replace(slow, link=DIRECT)
    assert first_token_s(ARCH, plan_for(ARCH, 1, 4), workers(4), 1000, direct) < times[4] / 3


def test_stages_work_at_the_same_time_for_many_requests() -> None:
    # Given one stage and four
    def rate(stages: int, requests: int) -> float:
        return tokens_per_s(ARCH, plan_for(ARCH, stages, 1), workers(stages), requests)

    # Then more stages slow one request down, and speed many up
    assert rate(4, 1) < rate(1, 1)
    assert rate(4, 16) > rate(1, 16)
    assert rate(1, 16) > rate(1, 1)


def test_a_token_reads_its_experts_only() -> None:
    # Given a mixture of 8 experts, of which a token takes 2
    plan, layers = plan_for(EXPERTS), Range(0, EXPERTS.num_layers)
    attention, mlp, experts = layer_bytes(EXPERTS, plan, (0, 0), layers)
    dense = attention + mlp
    assert 0 < dense < experts
    # Then a token reads a quarter of them, and a prompt all
    reads = workers(1, few_rows=1e15, many_rows=1e15)
    costs = Costs(layer_s=0.0, row_s=0.0)

    def seconds(tokens: int) -> float:
        return step_time(EXPERTS, plan, reads, Work(tokens), costs).compute_s

    speed = reads[0].speed
    assert seconds(2) - seconds(1) == pytest.approx(experts * (0.75 - 0.75**2) / speed, rel=0.1)
    assert seconds(1) < (dense + experts) / speed < seconds(200)


def test_layers_and_tables_are_all_of_the_weights() -> None:
    # Given a model whose last stage has no embedding
    plan = plan_for(ARCH, 2, 1)
    sizes = layer_bytes(ARCH, plan, (0, 0), Range(0, ARCH.num_layers))
    # Then a stage's weights are its layers and its embedding
    table = ARCH.vocab_size * ARCH.hidden_size * 4
    assert shard_weight_bytes(ARCH, plan, 0, 0) == sum(sizes) + table


@pytest.mark.parametrize("span", ["layer", "stage", "auto"])
def test_chords_are_as_many_as_the_engine_sends(span: str) -> None:
    # Given what a step costs, and an engine that has learned it
    costs = Costs()
    plan = plan_for(ARCH, 2, 1, chord_span=span)
    members = workers(2, round_trip_s=0.0)
    work = Work(512)
    predicted = step_time(ARCH, plan, members, work, costs)
    chooser = SpanChooser(plan, CHORD_SHARE)
    chooser.chord_s = costs.chord_s + costs.step_s / 2
    chooser._layer_s = {work.tokens.bit_length(): predicted.compute_s / ARCH.num_layers}
    # Then the prediction has as many chords
    chords = plan.chords_of(0, chooser.layers_per_chord(work.tokens))
    assert _num_chords(plan, members, work, costs) == chords


def _num_chords(plan: Plan, members: Sequence[Candidate], work: Work, costs: Costs) -> int:
    """By how much a step grows when each chord costs a little more."""
    more = replace(costs, chord_s=costs.chord_s + 1e-9)
    times = (step_time(ARCH, plan, members, work, each).chords_s for each in (more, costs))
    return round((next(times) - next(times)) / 1e-9)


def test_the_share_of_chords_is_the_settings_default() -> None:
    assert Settings.model_fields["chord_share"].default == CHORD_SHARE


@pytest.mark.parametrize("model_type", ["bert", "t5"])
def test_texts_for_an_encoder_have_a_time(model_type: str) -> None:
    # Given an encoder, or an encoder-decoder
    sizes = {
        "bert": {**SMALL, "type_vocab_size": 2},
        "t5": {
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 1024,
            "num_heads": 8,
            "num_layers": 4,
            "vocab_size": 4096,
        },
    }
    arch = load_architecture({**sizes[model_type], "model_type": model_type})
    plan, members = plan_for(arch, 2, 2), workers(4)
    # Then longer texts take longer
    short, long = (first_token_s(arch, plan, members, tokens) for tokens in (10, 500))
    assert 0 < short < long


def test_a_state_beside_attention_takes_time_in_every_layer() -> None:
    # Given two models with attention and Mamba-2 beside each other, one with states of 16 times
    # the size, whose weights are about the same
    fields = {
        "model_type": "falcon_h1",
        "mamba_d_ssm": 512,
        "mamba_n_heads": 8,
        "mamba_n_groups": 1,
    }
    small, large = (
        load_architecture({**SMALL, **fields, "mamba_d_state": size}) for size in (64, 1024)
    )
    plan, members, work = plan_for(small), workers(1), Work(rows=16, tokens=16, context=1)
    # When a step of many sequences is predicted
    times = [step_time(arch, plan, members, work).compute_s for arch in (small, large)]
    read = [
        layer_bytes(arch, plan, (0, 0), plan.stages[0].layers).attention for arch in (small, large)
    ]
    # Then the states take longer than the weights do
    assert times[1] - times[0] > 4 * (read[1] - read[0]) / members[0].speed
