"""Predicted seconds of steps, tokens and prompts: what the planner and `skynet plan` go by. Pure.

A step is the sum of what happens one after the other: on each stage a chord, the compute of the
slowest shard and the all-reduces between shards; then the orchestrator, which samples. Compute is
bound by memory (each weight is read once a step) or by arithmetic, whichever takes longer, plus
what the small operators and Python cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil

from skynet.architecture.architecture import Architecture
from skynet.planning.compute import Work, shard_compute_s
from skynet.planning.cost import Candidate, cores_of, crowded_hosts, stage_cores
from skynet.planning.plan import Plan
from skynet.planning.proximity import host_of, measured_trip_s
from skynet.planning.ranges import Range
from skynet.planning.spans import CHORD_SHARE, layers_per_chord
from skynet.planning.split import DTYPE_BYTES

MESSAGE_BYTES = 16 * 1024  # larger hidden states are fetched in a round trip of their own
AUTO, REDIS, DIRECT = "auto", "redis", "direct"
# Of a sum of shards that sleep, because their host has fewer cores than threads: fitted to what was
# measured at 2x2 on 2 cores.
WAKE_S = 2.5e-4
CALL_S = 1.5e-4  # of a command to Redis besides the network's round trip, as members measure it


@dataclass(frozen=True)
class Costs:
    """What a step costs besides products and round trips.

    The defaults are what `skynet bench plan` measured on a virtual machine with 2 cores of 2 GHz.

    layer_s: small operators and Python of a layer, for one row.
    row_s: the same for each further sequence in a step.
    sum_s: an all-reduce between two shards by the kind of their link, without its round trip.
    peer_s: the same for each further shard of the stage.
    copy_bytes_per_s: of partials and hidden states through one process.
    chord_s: a chord, from the message to the part returned, without its round trips.
    step_s: the orchestrator: sending a step, taking its result, sampling.
    sample_s: the same for each further sequence in a step.
    accept_s: from submission to the first step, without round trips.
    link: how the shards of a stage exchange partials: a key of `sum_s`, or auto: directly on one
        host and where they have had direct links, else through Redis.
    wire_bytes_per_s: of the network link of each machine, and of Redis's.
    """

    layer_s: float = 1.1e-4
    row_s: float = 6e-6
    sum_s: tuple[tuple[str, float], ...] = ((REDIS, 1.2e-4), (DIRECT, 3e-5))
    peer_s: float = 5e-5
    copy_bytes_per_s: float = 1e9
    chord_s: float = 0.0018
    step_s: float = 0.003
    sample_s: float = 3e-4
    accept_s: float = 0.02
    link: str = AUTO
    wire_bytes_per_s: float = float("inf")


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage in one step: its slowest shard, its all-reduces and its chords."""

    compute_s: float
    sums_s: float
    chord_s: float
    num_sums: int

    @property
    def busy_s(self) -> float:
        """Time in which the stage can compute no other step."""
        return self.compute_s + self.sums_s + self.chord_s


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: its stages, one after the other, and the orchestrator.

    busy_s: the orchestrator's work; trip_s: the round trip to it.
    """

    stages: tuple[StageTime, ...]
    busy_s: float
    trip_s: float

    @property
    def orchestrator_s(self) -> float:
        return self.busy_s + self.trip_s

    @property
    def total_s(self) -> float:
        return sum(stage.busy_s for stage in self.stages) + self.orchestrator_s

    @property
    def compute_s(self) -> float:
        return sum(stage.compute_s for stage in self.stages)

    @property
    def sums_s(self) -> float:
        return sum(stage.sums_s for stage in self.stages)

    @property
    def chords_s(self) -> float:
        return sum(stage.chord_s for stage in self.stages)

    @property
    def num_sums(self) -> int:
        return sum(stage.num_sums for stage in self.stages)


def step_time(
    arch: Architecture,
    plan: Plan,
    workers: Sequence[Candidate],
    work: Work,
    costs: Costs = Costs(),
    steps: int = 1,
) -> StepTime:
    """The predicted time of a step; `workers` are in the order of the plan's addresses.

    steps: at the same time, on different stages, which then share the cores of a host.
    """
    shards = plan.num_shards
    cores = stage_cores(workers, shards) if steps == 1 else cores_of(workers)
    layers = Range(arch.encoder_layers, plan.num_layers)  # an encoder runs once per request
    if work.encoder:
        layers = Range(0, arch.encoder_layers)
    runs = [stage.layers.overlap(layers) for stage in plan.stages]
    groups = [range(stage * shards, (stage + 1) * shards) for stage in range(len(runs))]
    members = [[(workers[at], cores[at]) for at in group] for group in groups]
    trips = [max(workers[at].round_trip_s for at in group) for group in groups]
    compute = [
        _stage_compute_s(arch, plan, stage, run, members[stage], work)
        + run.size * (costs.layer_s + costs.row_s * (work.rows - 1))
        for stage, run in enumerate(runs)
    ]
    span = _span(plan, runs, sum(compute), max(trips), costs)
    crowded = crowded_hosts(workers)
    wakes = [
        WAKE_S if any(host_of(workers[at]) in crowded for at in group) else 0.0 for group in groups
    ]
    stages = tuple(
        StageTime(
            compute[stage],
            _sums_s(arch, plan, run, [workers[at] for at in groups[stage]], work, costs)
            + _num_sums(arch, plan, run) * wakes[stage],
            _chords_s(arch, plan, ceil(run.size / span), work, trips[stage], costs),
            _num_sums(arch, plan, run),
        )
        for stage, run in enumerate(runs)
        if run.size
    )
    busy_s = costs.step_s + (work.rows - 1) * costs.sample_s
    return StepTime(stages, busy_s, trips[-1])


def token_s(
    arch: Architecture, plan: Plan, workers: Sequence[Candidate], costs: Costs = Costs()
) -> float:
    """Predicted seconds per token of one sequence at the start of its slot."""
    return step_time(arch, plan, workers, Work(), costs).total_s


def tokens_per_s(
    arch: Architecture,
    plan: Plan,
    workers: Sequence[Candidate],
    requests: int,
    costs: Costs = Costs(),
    context: int = 0,
) -> float:
    """Predicted tokens per second of so many requests at once, together.

    The requests are divided over as many steps as there are stages, which then work at the same
    time: the slowest of them, the orchestrator or the time of one step sets the pace.
    """
    requests = min(requests, plan.num_slots)
    batches = min(requests, len(plan.stages))
    rows = ceil(requests / batches)
    step = step_time(arch, plan, workers, Work(rows, rows, context), costs, batches)
    busiest = max(stage.busy_s for stage in step.stages)
    pace = max(step.total_s / batches, busiest, step.busy_s)
    return requests / batches / pace


def first_token_s(
    arch: Architecture,
    plan: Plan,
    workers: Sequence[Candidate],
    tokens: int,
    costs: Costs = Costs(),
    max_batch_tokens: int = 512,
) -> float:
    """Predicted seconds from submission to the first token after a prompt of so many tokens.

    Of an encoder: to the result of a text. The prompt is computed in chunks, one after the other;
    texts for an encoder are not cut.
    """
    trip = max(worker.round_trip_s for worker in workers)
    total_s = costs.accept_s + 4 * trip
    if arch.encoder is not None or arch.bidirectional:
        text = Work(tokens, encoder=arch.encoder is not None)
        total_s += step_time(arch, plan, workers, text, costs).total_s
        return total_s if arch.bidirectional else total_s + token_s(arch, plan, workers, costs)
    for start in range(0, tokens, max_batch_tokens):
        chunk = Work(min(max_batch_tokens, tokens - start), context=start)
        total_s += step_time(arch, plan, workers, chunk, costs).total_s
    return total_s


def _stage_compute_s(
    arch: Architecture,
    plan: Plan,
    stage: int,
    run: Range,
    members: Sequence[tuple[Candidate, float]],
    work: Work,
) -> float:
    """Products and attention of a stage. members: each shard's worker, and its cores."""
    if not run.size:
        return 0.0
    parts = [
        shard_compute_s(arch, plan, (stage, shard), run, member, work)
        for shard, member in enumerate(members)
    ]
    if arch.parallel:
        return max(map(sum, parts))
    # A sum waits for the slowest shard: which one that is differs between attention and MLP.
    return sum(map(max, zip(*parts, strict=True)))


def _span(plan: Plan, runs: Sequence[Range], compute_s: float, trip: float, costs: Costs) -> int:
    """Layers of a chord, as the engine chooses them for a step of that compute."""
    longest = max(run.size for run in runs)
    if plan.chord_span != "auto":
        return 1 if plan.chord_span == "layer" else longest
    chord_s = costs.chord_s + costs.step_s / len(runs) + 3 * trip
    layer_s = compute_s / sum(run.size for run in runs)
    return layers_per_chord(longest, chord_s, layer_s, CHORD_SHARE)


def _num_sums(arch: Architecture, plan: Plan, run: Range) -> int:
    return arch.first_sum(run.stop) - arch.first_sum(run.start) if plan.num_shards > 1 else 0


def _sums_s(
    arch: Architecture,
    plan: Plan,
    run: Range,
    workers: Sequence[Candidate],
    work: Work,
    costs: Costs,
) -> float:
    """Seconds of a stage's all-reduces."""
    direct_s = None if costs.link == REDIS else _direct_trip_s(workers)
    if costs.link == AUTO:
        costs = replace(costs, link=REDIS if direct_s is None else DIRECT)
    trip = direct_s
    if trip is None or costs.link == REDIS:
        trip = max(worker.round_trip_s for worker in workers)
    return _num_sums(arch, plan, run) * (trip + _sum_s(arch, plan, work, costs))


def _direct_trip_s(workers: Sequence[Candidate]) -> float | None:
    """The longest round trip between two shards of a stage; None: one is not known."""
    longest = 0.0
    for one, other in combinations({host_of(worker): worker for worker in workers}.values(), 2):
        trip = measured_trip_s(one, other)
        if trip is None:
            return None
        longest = max(longest, trip)
    return longest


def _chords_s(
    arch: Architecture, plan: Plan, num_chords: int, work: Work, trip: float, costs: Costs
) -> float:
    """Seconds of a stage's chords.

    Each chord carries the hidden states: a part from each shard, all parts to the last one, their
    sum to Redis and from there to each shard.
    """
    carried = arch.hidden_size if arch.has_inputs else 0  # see `Carried`; without keys and values
    frame = work.tokens * (arch.hidden_size + carried) * DTYPE_BYTES["float32"]
    moved = 2 * (plan.num_shards + 1) * frame
    if num_chords == 1 and len(plan.stages) == 1:
        moved = 0  # candidates only
    num_trips = num_chords * (3 if moved and frame > MESSAGE_BYTES else 2)
    return num_chords * (costs.chord_s + _moving_s(moved, costs)) + num_trips * trip


def _sum_s(arch: Architecture, plan: Plan, work: Work, costs: Costs) -> float:
    """Seconds of one all-reduce, without its round trip.

    Through Redis each shard publishes its partial once and receives every other one, and all of
    these pass Redis's link. On direct links a shard sends and receives 2 (N - 1) / N of a partial.
    """
    shards = plan.num_shards
    frame = work.tokens * arch.hidden_size * DTYPE_BYTES[plan.number_dtype]
    fixed_s = dict(costs.sum_s)[costs.link] + (shards - 2) * costs.peer_s
    if costs.link == DIRECT:
        return fixed_s + _moving_s(2 * (shards - 1) / shards * frame, costs)
    own, through_redis = shards * frame, shards * (shards - 1) * frame
    return fixed_s + own / costs.copy_bytes_per_s + through_redis / costs.wire_bytes_per_s


def _moving_s(num_bytes: float, costs: Costs) -> float:
    """Seconds to copy bytes through a process and to send them."""
    return num_bytes / costs.copy_bytes_per_s + num_bytes / costs.wire_bytes_per_s
