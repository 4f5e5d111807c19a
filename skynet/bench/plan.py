"""plan: what `skynet plan` predicts against what a cluster does, also through a delaying relay.

Predictions are made from parts that are measured in the same minutes: products, a narrow layer,
sums, chords, a round trip to Redis. What they say of the whole is then compared with the whole.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from typing import Any

from skynet.bench.delay import Delay
from skynet.bench.distribution import Distribution, measure_distribution, round_trip_s
from skynet.bench.report import Result
from skynet.local.cluster import LocalCluster, free_port
from skynet.models.registry import load_architecture
from skynet.planning.cost import Candidate
from skynet.planning.plan import Plan
from skynet.planning.timing import AUTO, REDIS, Costs, first_token_s, tokens_per_s
from skynet.request.completion import Completion
from skynet.staging.split import SplitOptions, open_source
from skynet.worker.layer_speed import measure_layer
from skynet.worker.speed import measure_speeds

MODEL = "smollm2"
SHAPES = ((1, 1), (1, 2), (2, 1), (2, 2))
ROUND_TRIPS_MS = (0.2, 1.0, 5.0)
NUM_TOKENS = 32
PROMPT_TOKENS, LONG_PROMPT_TOKENS = 16, 1000
LIMIT = 0.2  # of the error


def plan(rounds: int) -> Result:
    """All shapes, without a relay and through one."""
    result = Result("plan", f"predicted and measured, {MODEL}, {os.cpu_count()} cores", "%")
    distribution = measured_distribution()
    for stages, shards in SHAPES:
        add_shape(result, (stages, shards), rounds, distribution)
    return result


def measured_distribution() -> Distribution:
    """What sums and chords cost here."""
    layer_s, _ = measure_layer(measure_speeds("cpu"), min_s=0.3)
    return measure_distribution(layer_s)


def add_shape(
    result: Result, shape: tuple[int, int], rounds: int, distribution: Distribution
) -> None:
    """Add the errors of one shape's predictions, in percent of what was measured.

    There is no relay at 1x1 and 2x2: one waits for no sums, the other needs more cores.
    """
    stages, shards = shape
    with LocalCluster(MODEL, stages, shards) as cluster:
        _add(result, f"{stages}x{shards}", cluster, rounds, distribution)
    if stages == shards:
        return
    port = free_port()
    with Delay(port) as delay:
        through = {"SKYNET_REDIS_URL": delay.url, "SKYNET_EXCHANGE": "redis"}
        with LocalCluster(MODEL, stages, shards, port=port, environment=through) as cluster:
            for round_trip_ms in ROUND_TRIPS_MS:
                delay.set(round_trip_ms / 2000)
                name = f"{stages}x{shards}, {round_trip_ms:g} ms"
                _add(result, name, cluster, rounds, distribution, delay.url)
            delay.set(0)


def _add(
    result: Result,
    name: str,
    cluster: LocalCluster,
    rounds: int,
    distribution: Distribution,
    url: str | None = None,
) -> None:
    """url: through which the workers reach Redis; the cluster's by default."""
    if cluster.plan is None:
        return
    measured = _measured(cluster, rounds)
    # Afterwards: a cluster that has just started is still busy.
    worker, costs = _parts(cluster.plan, url or cluster.url)
    costs = replace(distribution.costs(costs), link=REDIS if url else AUTO)
    predicted = _predicted(cluster.plan, worker, costs)
    for what, unit in (("1 request", "tokens/s"), ("first token of 1,000", "s")):
        error = 100 * (predicted[what] / measured[what] - 1)
        result.samples[f"{name}: {what}"] = [abs(error)]
        result.targets[f"{name}: {what}"] = 100 * LIMIT
        pair = f"predicted {predicted[what]:.3g} {unit}, measured {measured[what]:.3g}"
        result.notes[f"{name}: {what}"] = f"{pair} ({error:+.0f} %)"


def _parts(plan: Plan, url: str) -> tuple[Candidate, Costs]:
    """A worker of this cluster, and costs, as they are now: speeds vary from minute to minute."""
    cores, num_workers = os.cpu_count() or 1, len(list(plan.addresses()))
    threads = max(1, cores // num_workers)
    together = min(cores, threads * plan.num_shards)  # with one request, stages compute in turns
    speeds = measure_speeds("cpu", together, min_s=0.3)
    layer_s, row_s = measure_layer(replace(speeds, threads=threads), min_s=0.3)
    worker = Candidate(
        "",
        "here",
        cores=cores,
        threads=threads,
        speed=speeds.one_row,
        few_rows=speeds.few_rows,
        many_rows=speeds.many_rows,
        round_trip_s=round_trip_s(url),
    )
    return worker, Costs(layer_s=layer_s, row_s=row_s)


def _predicted(plan: Plan, worker: Candidate, costs: Costs) -> dict[str, float]:
    arch = load_architecture(open_source(MODEL, SplitOptions()).config)
    workers = [worker] * len(list(plan.addresses()))
    context = PROMPT_TOKENS + NUM_TOKENS // 2
    return {
        "1 request": tokens_per_s(arch, plan, workers, 1, costs, context),
        "first token of 1,000": first_token_s(arch, plan, workers, LONG_PROMPT_TOKENS, costs),
    }


def _measured(cluster: LocalCluster, rounds: int) -> dict[str, float]:
    rates, firsts = [], []
    for turn in range(rounds + 1):  # the first one warms up
        prompt = [100 + 37 * turn + position for position in range(PROMPT_TOKENS)]
        answer = _answer(cluster, prompt, NUM_TOKENS)
        rates.append(answer.timings["decode_tokens_per_s"])
    for turn in range(max(1, rounds // 2)):
        prompt = [100 + turn + position % 3000 for position in range(LONG_PROMPT_TOKENS)]
        answer = _answer(cluster, prompt, 1)
        firsts.append(answer.timings["first_token_s"])
    return {
        "1 request": statistics.median(rates[1:]),
        "first token of 1,000": statistics.median(firsts),
    }


def _answer(cluster: LocalCluster, prompt: list[int], num_tokens: int) -> Completion:
    """Nothing is reused of a prompt before."""
    salt = str(time.perf_counter())
    options: dict[str, Any] = {"max_tokens": num_tokens, "ignore_eos": True, "cache_salt": salt}
    return cluster.submit_prompt(prompt, **options).get()
