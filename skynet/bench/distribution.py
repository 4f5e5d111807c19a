"""Measures the cost of distribution on this machine: sums, chords, the orchestrator's work.

A narrow model runs at 1x2, with a chord for each layer and with one chord for all: what the former
takes longer is the further chords. What the latter takes beyond its chord, its layers and its sums
is the orchestrator's part.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from skynet.bench.chord import narrow_model
from skynet.bench.exchange import time_of_direct, time_of_redis
from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster
from skynet.local.server import local_server
from skynet.planning.timing import DIRECT, REDIS, Costs
from skynet.staging.split import skysplit
from skynet.store.connection import connect
from skynet.store.plans import Plans

LAYERS, TOKENS, REQUESTS = 8, 32, 3
PINGS = 100
SWITCHED_S = 60.0


@dataclass(frozen=True)
class Distribution:
    """Seconds on this machine, without the round trips to Redis.

    direct_s, redis_s: a sum of 1,024 numbers of two shards, directly and through Redis.
    chord_s: a chord of two shards. step_s: the orchestrator's part of a step.
    """

    direct_s: float
    redis_s: float
    chord_s: float
    step_s: float

    def costs(self, costs: Costs) -> Costs:
        """The same costs with these."""
        sums = ((REDIS, self.redis_s), (DIRECT, self.direct_s))
        return replace(costs, sum_s=sums, chord_s=self.chord_s, step_s=self.step_s)


def measure_distribution(layer_s: float) -> Distribution:
    """Start a small cluster and measure; it takes about 20 seconds.

    layer_s: of a narrow layer besides its products, as `measure_layer` returns it.

    Raises:
        SkynetError: no server is installed, or the cluster does not start.
    """
    with local_server() as (server, _):
        trip_s = round_trip_s(server.url)
        direct_s = time_of_direct(server.directory / "direct.sock")
        redis_s = max(0.0, time_of_redis(server.url) - trip_s)
        by_layer_s, one_chord_s, trip_s = _steps_s(narrow_model(server.directory / "model", LAYERS))
    chord_s = (by_layer_s - one_chord_s) / (LAYERS - 1)  # with its two round trips
    step_s = one_chord_s - chord_s - LAYERS * (layer_s + 2 * direct_s) - trip_s
    return Distribution(direct_s, redis_s, max(0.0, chord_s - 2 * trip_s), max(0.0, step_s))


def round_trip_s(url: str) -> float:
    """The median round trip of a command to Redis, measured as workers measure it."""
    times = []
    with connect(url) as client:
        for _ in range(PINGS):
            started = time.perf_counter()
            client.time()
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _steps_s(model: Path) -> tuple[float, float, float]:
    """Seconds of a step with a chord for each layer, and with one chord; of a round trip."""
    with LocalCluster(model, 1, 2, chord_span="layer", weights="bf16") as cluster:
        by_layer_s = _step_s(cluster)
        skysplit(str(model), 1, 2, chord_span="stage", weights="bf16", url=cluster.url)
        _wait_for_span(cluster, "stage")
        return by_layer_s, _step_s(cluster), round_trip_s(cluster.url)


def _step_s(cluster: LocalCluster) -> float:
    """The least seconds of a step over several requests: the machine may be busy for a moment."""
    rates = []
    for number in range(REQUESTS):
        request = cluster.submit_prompt([1, 2, 3 + number], max_tokens=TOKENS, ignore_eos=True)
        rates.append(request.get().timings["decode_tokens_per_s"])
    return 1 / max(rates)


def _wait_for_span(cluster: LocalCluster, span: str) -> None:
    plans, deadline = Plans(cluster.client.redis), time.monotonic() + SWITCHED_S
    while True:
        plan = plans.current()
        if plan is not None and plan.chord_span == span:
            return
        if time.monotonic() > deadline:
            raise SkynetError(f"the cluster did not change its chord span in {SWITCHED_S:g} s")
        time.sleep(0.02)
