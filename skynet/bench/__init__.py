"""`skynet bench`: SkyNet against others, side by side in one run. Prints ratios.

Times differ from machine to machine and from minute to minute; ratios of contestants that took
turns in one run travel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from skynet.bench.report import Result
from skynet.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import Console

Scenario = Callable[[int], Result]


def _scenarios() -> dict[str, Scenario]:
    from skynet.bench import chord, exchange, generation, load, recover

    return {
        "decode": generation.decode,
        "batch": generation.batch,
        "chord": chord.chord,
        "exchange": exchange.exchange,
        "load": load.load,
        "recover": recover.recover,
    }


def run_scenarios(names: Sequence[str], rounds: int, as_json: bool, console: Console) -> None:
    """Run the named scenarios, all if none is named, and print what they measured.

    Raises:
        BadRequest: a name that is no scenario.
    """
    known = _scenarios()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadRequest(f"unknown scenario {', '.join(unknown)}; known are {', '.join(known)}")
    results = []
    for name in names or known:
        with console.status(f"{name} ..."):
            result = known[name](rounds)
        results.append(result)
        console.print(result.table())
    if as_json:
        click.echo(json.dumps({result.name: result.summary() for result in results}))
