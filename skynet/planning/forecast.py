"""What a model would need and how fast it would be, on workers that need not exist. Pure.

`skynet plan` shows it. Times are those of timing.py, by which the planner chooses shapes, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from skynet.architecture.architecture import Architecture
from skynet.architecture.quantisable import quantised
from skynet.architecture.tensors import staged_tensors
from skynet.errors import PlanError
from skynet.planning.compute import Work
from skynet.planning.cost import WORKER_BYTES, Candidate, load_s, overfull
from skynet.planning.memory import shard_weight_bytes, slot_bytes
from skynet.planning.placement import fitting_plan
from skynet.planning.plan import Plan
from skynet.planning.split import WEIGHT_BITS, PlanOptions, make_plan
from skynet.planning.timing import Costs, StepTime, first_token_s, step_time, tokens_per_s
from skynet.wire.quantised import Layout

PROMPT_TOKENS = 1000
MANY_REQUESTS = 16
REDIS_SHARE, REDIS_BYTES = 1.02, 8 * 2**20  # what Redis takes beyond the weights
LAYOUTS: dict[str, Layout] = {"q8": "q8", "q4": "q4"}
SAME = 0.99  # of a speed is no slower
ENOUGH = 0.9  # of the best speed: more workers than that takes are not worth it


@dataclass(frozen=True)
class Question:
    """What is asked: a model, how it is kept, and what steps cost.

    weights: the dtype or layout of weights in memory and in Redis.
    """

    arch: Architecture
    options: PlanOptions
    weights: str
    costs: Costs

    @cached_property
    def kept(self) -> Architecture:
        """The model with its weights as they are kept."""
        layout = LAYOUTS.get(self.weights)
        return self.arch if layout is None else quantised(self.arch, layout)

    def layout(
        self,
        stages: int,
        shards: int,
        weights: Sequence[Sequence[float]] | None = None,
        by_memory: bool = False,
    ) -> Plan:
        """The plan of a shape; weights, by_memory: as of `make_plan`."""
        numbers = "bfloat16" if self.weights in LAYOUTS else self.weights
        options = replace(self.options, weight_dtype=numbers)
        return make_plan(
            self.kept,
            options,
            stages=stages,
            shards=shards,
            weights=weights,
            by_memory=by_memory,
        )

    @property
    def redis_bytes(self) -> int:
        """Memory of Redis for the staged model."""
        bits = 32.0 if self.weights == "float32" else 16.0
        total = sum(
            prod(tensor.shape) * (WEIGHT_BITS[form.layout] if form else bits) / 8
            for tensor in staged_tensors(self.arch)
            for form in [self.kept.formats.get(tensor.name)]
        )
        return int(total * REDIS_SHARE) + REDIS_BYTES


@dataclass(frozen=True)
class Forecast:
    """One shape.

    weight_bytes, kv_bytes, memory_bytes: of the worker that needs most; kv_bytes with all slots
        full, memory_bytes with the process.
    one, many: tokens per second of 1 request and of 16; 0 for an encoder.
    step: of one token.
    problem: why the shape is impossible, or what is missing; then other fields may be 0.
    """

    stages: int
    shards: int
    weight_bytes: int = 0
    kv_bytes: int = 0
    memory_bytes: int = 0
    load_s: float = 0.0
    first_token_s: float = 0.0
    one: float = 0.0
    many: float = 0.0
    step: StepTime | None = None
    problem: str = ""

    @property
    def workers(self) -> int:
        return self.stages * self.shards

    @property
    def shape(self) -> str:
        return f"{self.stages}x{self.shards}"

    @property
    def speed(self) -> float:
        """What shapes are compared by: tokens per second, of an encoder texts per second."""
        return self.one or 1 / self.first_token_s

    @property
    def parts_s(self) -> dict[str, float]:
        """Seconds of a token by cause."""
        step = self.step
        if step is None:
            return {}
        return {
            "products": step.compute_s,
            "sums": step.sums_s,
            "chords": step.chords_s,
            "orchestrator": step.orchestrator_s,
        }

    @property
    def bound(self) -> str:
        """The cause of most of a token's time."""
        parts = self.parts_s
        return max(parts, key=lambda name: parts[name]) if parts else ""


def forecast(
    question: Question, stages: int, shards: int, members: Sequence[Candidate]
) -> Forecast:
    """The forecast of one shape on the first of these members."""
    arch, costs, workers = question.kept, question.costs, members[: stages * shards]
    try:
        plan, _ = fitting_plan(arch, question.layout, stages, shards, workers)
    except PlanError as error:
        return Forecast(stages, shards, problem=str(error))
    weights = [shard_weight_bytes(arch, plan, *address) for address in plan.addresses()]
    kv = [slot_bytes(arch, plan, *address) for address in plan.addresses()]
    tokens = min(PROMPT_TOKENS, plan.slot_tokens)
    fastest_load_s = load_s(arch, replace(plan, workers=_names(workers)), None)
    sizes = Forecast(
        stages,
        shards,
        weight_bytes=max(weights),
        kv_bytes=max(kv),
        memory_bytes=max(map(sum, zip(weights, kv, strict=True))) + WORKER_BYTES,
        load_s=max(fastest_load_s, sum(weights) / costs.wire_bytes_per_s),
        first_token_s=first_token_s(arch, plan, workers, tokens, costs),
        problem=overfull(arch, plan, workers),
    )
    if arch.bidirectional:
        return replace(sizes, step=step_time(arch, plan, workers, Work(tokens), costs))
    return replace(
        sizes,
        one=tokens_per_s(arch, plan, workers, 1, costs, tokens),
        many=tokens_per_s(arch, plan, workers, MANY_REQUESTS, costs, tokens),
        step=step_time(arch, plan, workers, Work(context=tokens), costs),
    )


def forecasts(
    question: Question, counts: Iterable[int], members: Sequence[Candidate]
) -> list[Forecast]:
    """All shapes that use exactly one of `counts` workers: first those that fit, the fastest first.

    members: at least as many as the largest count.
    """
    shapes = [
        (stages, count // stages)
        for count in sorted(set(counts))
        for stages in range(1, count + 1)
        if count % stages == 0
    ]
    made = [forecast(question, stages, shards, members) for stages, shards in shapes]
    return sorted(made, key=lambda f: (bool(f.problem), f.workers, -f.speed if f.step else 0))


def recommended(made: Sequence[Forecast]) -> tuple[Forecast, str] | None:
    """The shape to take, and why; None if none fits."""
    fitting = [each for each in made if not each.problem]
    if not fitting:
        return None
    fastest = max(fitting, key=lambda each: each.speed)
    enough = [each for each in fitting if each.speed >= ENOUGH * fastest.speed]
    chosen = min(enough, key=lambda each: (each.workers, -each.speed))
    if chosen is fastest:
        return chosen, f"the fastest of the shapes that fit, bound by {_cause(chosen)}"
    gain = fastest.speed / chosen.speed - 1
    faster = f"only {gain:.0%} faster" if gain >= 0.01 else "no faster"
    return chosen, (
        f"{fastest.shape} needs {fastest.workers} workers instead of {chosen.workers} and is "
        f"{faster}; {chosen.shape} is bound by {_cause(chosen)}"
    )


def slower_from(made: Sequence[Forecast]) -> tuple[int, str] | None:
    """The number of workers from which on more are no faster, and why; None if more are faster."""
    best: dict[int, Forecast] = {}
    for each in made:
        if not each.problem and (each.workers not in best or each.speed > best[each.workers].speed):
            best[each.workers] = each
    if not best:
        return None
    fastest = max(best.values(), key=lambda each: (each.speed, -each.workers))
    larger = [best[count] for count in sorted(best) if count > fastest.workers]
    if not larger:
        return None
    other = larger[0]
    if other.speed >= SAME * fastest.speed:
        return other.workers, (
            f"{other.shape} is no faster than {fastest.shape}: a token passes stages one after the "
            "other, and in wider stages it waits longer for sums, a round trip each"
        )
    return other.workers, f"{other.shape} is slower than {fastest.shape}: {_why(fastest, other)}"


def _why(fast: Forecast, slow: Forecast) -> str:
    """What takes longer in the slower shape than it saves in products."""
    before, after = fast.parts_s, slow.parts_s
    grown = max(after, key=lambda name: after[name] - before[name])
    saved = before["products"] - after["products"]
    more = after[grown] - before[grown]
    products = f"its products save {saved * 1e3:.1f} ms" if saved > 0 else "its products save none"
    if grown == "products":
        return f"its slowest worker's products take {more * 1e3:.1f} ms more"
    return f"{_cause(slow, grown)}, {more * 1e3:.1f} ms more a token, {products}"


def _cause(each: Forecast, part: str = "") -> str:
    """A part of a token's time, with its number of round trips."""
    part, step = part or each.bound, each.step
    if step is None:
        return part
    spent = f"{each.parts_s[part] * 1e3:.1f} ms"
    if part == "sums":
        return f"{step.num_sums} sums one after the other ({spent}, a round trip each)"
    if part == "chords":
        return f"{len(step.stages)} chords one after the other ({spent}, two round trips each)"
    names = {"products": "reading the weights", "orchestrator": "the orchestrator"}
    return f"{names[part]} ({spent})"


def _names(workers: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(worker.id for worker in workers)
