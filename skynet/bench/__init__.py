"""`skynet bench`: SkyNet and other software, taking turns in one run. Prints ratios.

Times differ between machines and from minute to minute; ratios of contestants that take turns in
one run are comparable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from skynet.bench.report import Result
from skynet.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import Console

Scenario = Callable[[int], Result]


def _scenarios() -> dict[str, Scenario]:
    from skynet.bench import (
        append_only,
        chord,
        exchange,
        generation,
        http,
        load,
        plan,
        recover,
        turns,
    )
    from skynet.bench.models import QWEN3
    from skynet.bench.step_shares import bandwidth, cost

    return {
        "decode": generation.decode,
        "batch": generation.batch,
        "prefill": generation.prefill,
        "weights": generation.weights,
        "decode-qwen3": partial(generation.decode, model=QWEN3, reach=2.2),
        "prefill-qwen3": partial(generation.prefill, model=QWEN3),
        "weights-qwen3": partial(generation.weights, model=QWEN3, reach=(1.9, 1.5)),
        "cost": cost,
        "cost-qwen3": partial(cost, model=QWEN3),
        "bandwidth": bandwidth,
        "bandwidth-qwen3": partial(bandwidth, model=QWEN3),
        "chord": chord.chord,
        "aof": append_only.append_only,
        "exchange": exchange.exchange,
        "load": load.load,
        "reload": load.reload,
        "recover": recover.recover,
        "plan": plan.plan,
        "turns": turns.turns,
        "http": http.http,
    }


def run_scenarios(names: Sequence[str], rounds: int, as_json: bool, console: Console) -> None:
    """Run the named scenarios, by default all, and print the results.

    Raises:
        BadRequest: a scenario is unknown.
    """
    scenarios = _scenarios()
    unknown = [name for name in names if name not in scenarios]
    if unknown:
        raise BadRequest(
            f"unknown scenario {', '.join(unknown)}; choose from {', '.join(scenarios)}"
        )
    summaries = {}
    for name in names or scenarios:
        with console.status(f"{name} ..."):
            result = replace(scenarios[name](rounds), name=name)
        summaries[name] = result.summary()
        console.print(result.table())
    if as_json:
        click.echo(json.dumps(summaries))
