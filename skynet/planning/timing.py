"""Predicted seconds of steps, tokens and prompts: what the planner and `skynet plan` go by. Pure.

A step is the sum of what happens one after the other: on each stage a chord, the compute of the
slowest shard and the all-reduces between shards; then the orchestrator, which samples. Compute is
bound by memory (each weight is read once a step) or by arithmetic, whichever takes longer, plus
what the small operators and Python cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from skynet.architecture.architecture import Architecture
from skynet.planning.cost import Candidate, cores_of
from skynet.planning.memory import head_bytes, layer_bytes
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.spans import CHORD_SHARE, layers_per_chord
from skynet.planning.split import DTYPE_BYTES, WEIGHT_BITS

FEW_ROWS = 32  # from here on products run at the speed of many rows
# Attention's multiply-adds in a second, relative to those of products of as many rows.
ATTENTION_SPEED = 0.4
# Over the hidden states and MLP columns of a token, in each layer: norms, activation, copies.
ACTIVATION_PASSES = 24
LOGIT_PASSES = 8  # over the logits of a row, to choose candidates
MESSAGE_BYTES = 16 * 1024  # larger hidden states are fetched in a round trip of their own
REDIS, DIRECT = "redis", "direct"
CALL_S = 1.5e-4  # of a command to Redis besides the network's round trip, as members measure it


@dataclass(frozen=True)
class Costs:
    """What a step costs besides products and round trips.

    The defaults are those that `skynet bench plan` measured on a virtual machine with 2 cores of
    2 GHz. `direct` is not measured by it.

    layer_s: small operators and Python of a layer, for one row.
    row_s: the same for each further sequence in a step.
    sum_s: an all-reduce between two shards by the kind of their link, without its round trip.
    peer_s: the same for each further shard of the stage.
    copy_bytes_per_s: of partials and hidden states through one process.
    chord_s: a chord, from the message to the part returned, without its round trips.
    step_s: the orchestrator: sending a step, taking its result, sampling.
    sample_s: the same for each further sequence in a step.
    accept_s: from submission to the first step, without round trips.
    link: how the shards of a stage exchange partials: a key of `sum_s`.
    wire_bytes_per_s: of the network link of each machine, and of Redis's.
    """

    layer_s: float = 4e-4
    row_s: float = 2e-5
    sum_s: tuple[tuple[str, float], ...] = ((REDIS, 2e-4), (DIRECT, 1e-5))
    peer_s: float = 5e-5
    copy_bytes_per_s: float = 1e9
    chord_s: float = 0.002
    step_s: float = 0.003
    sample_s: float = 3e-4
    accept_s: float = 0.02
    link: str = REDIS
    wire_bytes_per_s: float = float("inf")


@dataclass(frozen=True)
class Work:
    """A step's new tokens, in so many rows (sequences), each after `context` tokens in its slot.

    encoder: the tokens are texts for the encoder of an encoder-decoder.
    """

    tokens: int = 1
    rows: int = 1
    context: int = 0
    encoder: bool = False


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage in one step, and what causes them.

    compute_s: of its slowest shard.
    sums_s: of its all-reduces; num_sums: their number.
    chord_s: of its chord.
    wait_s: the part of all these that is round trips.
    """

    compute_s: float
    sums_s: float
    chord_s: float
    wait_s: float
    num_sums: int

    @property
    def busy_s(self) -> float:
        """Time in which the stage can compute no other step."""
        return self.compute_s + self.sums_s + self.chord_s


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: its stages, one after the other, and the orchestrator.

    wait_s: round trips to the orchestrator, a part of orchestrator_s.
    """

    stages: tuple[StageTime, ...]
    orchestrator_s: float
    wait_s: float

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
) -> StepTime:
    """The predicted time of a step; `workers` are in the order of the plan's addresses."""
    cores, shards = cores_of(workers), plan.num_shards
    layers = Range(arch.encoder_layers, plan.num_layers)  # an encoder runs once per request
    if work.encoder:
        layers = Range(0, arch.encoder_layers)
    runs = [stage.layers.overlap(layers) for stage in plan.stages]
    compute: list[float] = []
    for stage, run in enumerate(runs):
        pairs = list(zip(workers, cores, strict=True))[stage * shards : (stage + 1) * shards]
        parts = [
            _compute_s(arch, plan, (stage, shard), run, worker, share, work)
            for shard, (worker, share) in enumerate(pairs)
        ]
        # A sum waits for the slowest shard: which one that is differs between attention and MLP.
        slowest = sum(map(max, zip(*parts, strict=True)))
        if arch.parallel:
            slowest = max(map(sum, parts))
        compute.append(slowest + run.size * _layer_s(work, costs) if run.size else 0.0)
    trips = [
        max(worker.round_trip_s for worker in workers[stage * shards : (stage + 1) * shards])
        for stage in range(len(runs))
    ]
    span = _span(plan, runs, sum(compute), max(trips), costs)
    stages: list[StageTime] = []
    for stage, run in enumerate(runs):
        if run.size:
            members = workers[stage * shards : (stage + 1) * shards]
            sums_s, sums_wait_s = _sums_s(arch, plan, run, members, work, costs)
            chord_s, chord_wait_s = _chords_s(
                arch, plan, ceil(run.size / span), work, trips[stage], costs
            )
            stages.append(
                StageTime(
                    compute[stage],
                    sums_s,
                    chord_s,
                    sums_wait_s + chord_wait_s,
                    _num_sums(arch, plan, run),
                )
            )
    orchestrator_s = costs.step_s + (work.rows - 1) * costs.sample_s + trips[-1]
    return StepTime(tuple(stages), orchestrator_s, trips[-1])


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
    step = step_time(arch, plan, workers, Work(rows, rows, context), costs)
    busiest = max(stage.busy_s for stage in step.stages)
    pace = max(step.total_s / batches, busiest, step.orchestrator_s - step.wait_s)
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


def _layer_s(work: Work, costs: Costs) -> float:
    return costs.layer_s + costs.row_s * (work.rows - 1)


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
) -> tuple[float, float]:
    """(seconds of a stage's all-reduces, the part that is round trips)."""
    hosts = {worker.host or worker.id for worker in workers}
    trip = max(worker.round_trip_s for worker in workers)
    if costs.link == DIRECT and len(hosts) == 1:
        trip = 0.0
    num_sums = _num_sums(arch, plan, run)
    return num_sums * (trip + _sum_s(arch, plan, work, costs)), num_sums * trip


def _chords_s(
    arch: Architecture, plan: Plan, num_chords: int, work: Work, trip: float, costs: Costs
) -> tuple[float, float]:
    """(seconds of a stage's chords, the part that is round trips).

    Each chord carries the hidden states: a part from each shard, all parts to the last one, their
    sum to Redis and from there to each shard.
    """
    frame = work.tokens * arch.hidden_size * DTYPE_BYTES["float32"]
    moved = 2 * (plan.num_shards + 1) * frame
    if num_chords == 1 and len(plan.stages) == 1:
        moved = 0  # candidates only
    num_trips = num_chords * (3 if moved and frame > MESSAGE_BYTES else 2)
    seconds = num_chords * (costs.chord_s + _moving_s(moved, costs)) + num_trips * trip
    return seconds, num_trips * trip


def _compute_s(
    arch: Architecture,
    plan: Plan,
    address: tuple[int, int],
    layers: Range,
    worker: Candidate,
    cores: float,
    work: Work,
) -> tuple[float, float, float]:
    """Seconds of one shard in some layers: attention, MLP, and then its logits."""
    read = worker.speed * cores
    multiply = (worker.few_rows if work.tokens < FEW_ROWS else worker.many_rows) * cores
    bytes_of_weight = WEIGHT_BITS[plan.weight_dtype] / 8

    def products_s(read_bytes: float, used_bytes: float, rows: int) -> float:
        return max(read_bytes / read, used_bytes * rows / bytes_of_weight / multiply)

    sizes = layer_bytes(arch, plan, address, layers)
    part = plan.stages[address[0]].shards[address[1]]
    attention_s = products_s(sizes.attention, sizes.attention, work.tokens)
    attention_s += layers.size * _attention_s(arch, plan, part, work, (read, multiply))
    chosen = arch.experts_per_token / arch.num_experts if arch.num_experts else 1.0
    read_experts = sizes.experts * (1 - (1 - chosen) ** work.tokens)
    used_experts = sizes.experts * chosen
    mlp_s = products_s(sizes.mlp + read_experts, sizes.mlp + used_experts, work.tokens)
    activations = work.tokens * (arch.hidden_size + part.columns.size) * DTYPE_BYTES["float32"]
    mlp_s += layers.size * ACTIVATION_PASSES * activations / read
    if address[0] < len(plan.stages) - 1 or work.encoder:
        return attention_s, mlp_s, 0.0
    head = head_bytes(arch, plan, address[1])
    logits = part.vocab.size * work.rows * DTYPE_BYTES["float32"] if head else 0
    head_s = products_s(head, head, work.rows) + LOGIT_PASSES * logits / read
    return attention_s, mlp_s, head_s


def _attention_s(
    arch: Architecture, plan: Plan, part: ShardPlan, work: Work, rates: tuple[float, float]
) -> float:
    """Seconds of one layer's scores and mixes: (bytes read, multiply-adds) per second."""
    stack, own = (arch.encoder, part.encoder) if work.encoder else (arch, part)
    if stack is None or own is None:
        return 0.0
    new = work.tokens / work.rows
    cached = work.rows * (work.context + new) * 2 * own.kv_heads.size * stack.head_dim
    seen = work.context + (new if stack.bidirectional else (new + 1) / 2)
    multiplied = work.tokens * seen * 2 * own.heads.size * stack.head_dim
    return max(cached * DTYPE_BYTES[plan.dtype] / rates[0], multiplied / rates[1] / ATTENTION_SPEED)


def _sum_s(arch: Architecture, plan: Plan, work: Work, costs: Costs) -> float:
    """Seconds of one all-reduce, without its round trip.

    Through Redis each shard sends its partial for every other one, and all pass Redis's link. On
    direct links a shard sends and receives 2 (N - 1) / N of a partial.
    """
    shards = plan.num_shards
    frame = work.tokens * arch.hidden_size * DTYPE_BYTES[plan.dtype]
    fixed_s = dict(costs.sum_s)[costs.link] + (shards - 2) * costs.peer_s
    if costs.link == DIRECT:
        return fixed_s + _moving_s(2 * (shards - 1) / shards * frame, costs)
    own, through_redis = 2 * (shards - 1) * frame, shards * (shards - 1) * frame
    return fixed_s + own / costs.copy_bytes_per_s + through_redis / costs.wire_bytes_per_s


def _moving_s(num_bytes: float, costs: Costs) -> float:
    """Seconds to copy bytes through a process and to send them."""
    return num_bytes / costs.copy_bytes_per_s + num_bytes / costs.wire_bytes_per_s
