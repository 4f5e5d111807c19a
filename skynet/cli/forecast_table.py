"""Forecasts of shapes as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from skynet.cli.plan_table import many
from skynet.cli.terminal import out
from skynet.planning.forecast import (
    MANY_REQUESTS,
    PROMPT_TOKENS,
    Forecast,
    Question,
    recommended,
    slower_from,
)

GIB = 2**30


def forecast_json(question: Question, made: Sequence[Forecast]) -> dict[str, Any]:
    """All forecasts and what follows from them."""
    chosen, slower = recommended(made), slower_from(made)
    return {
        "weights": question.weights,
        "dtype": question.options.dtype,
        "redis_bytes": question.redis_bytes,
        "shapes": [_row_json(each) for each in made],
        "recommended": chosen and {"shape": chosen[0].shape, "reason": chosen[1]},
        "slower_from": slower and {"workers": slower[0], "reason": slower[1]},
    }


def _row_json(each: Forecast) -> dict[str, Any]:
    fields = asdict(each)
    del fields["step"]
    names = {"one": "tokens_per_s", "many": f"tokens_per_s_{MANY_REQUESTS}"}
    renamed = {names.get(name, name): value for name, value in fields.items()}
    return {
        "shape": each.shape,
        "workers": each.workers,
        **renamed,
        "token_s": each.parts_s,
        "sums": each.step.num_sums if each.step else 0,
        "bound": each.bound,
    }


def print_forecasts(name: str, question: Question, made: Sequence[Forecast], source: str) -> None:
    """Print the table, the recommendation and from where on more workers are slower."""
    arch, chosen, slower = question.arch, recommended(made), slower_from(made)
    _say(
        f"{name}: {question.weights} weights, computed in {question.options.dtype}; "
        f"Redis needs {_gib(question.redis_bytes)}"
    )
    _say(f"Speeds: {source}.", style="dim")
    out.print()
    fitting = [each for each in made if not each.problem]
    if fitting:
        out.print(_table(fitting, chosen[0] if chosen else None, arch.bidirectional))
        out.print()
    for each in made:
        if each.problem:
            _say(f"{each.shape} ({many(each.workers, 'worker')}): {each.problem}", style="yellow")
    if chosen:
        _say(f"Recommended: {chosen[0].shape}: {chosen[1]}.", style="bold")
        shape = f"--stages {chosen[0].stages} --shards {chosen[0].shards}"
        _say(f"  skynet split MODEL {shape}")
    else:
        _say("No shape fits: take more workers, more memory, or smaller weights.", style="red")
    if slower:
        _say(f"More are slower from {many(slower[0], 'worker')} on: {slower[1]}.")


def _table(made: Sequence[Forecast], chosen: Forecast | None, is_encoder: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    result = "text of" if is_encoder else "first token,"
    names = ["workers", "shape", "memory each", "weights", "load", f"{result} {PROMPT_TOKENS:,}"]
    if not is_encoder:
        names += ["tokens/s, 1 request", f"{MANY_REQUESTS} requests"]
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("most time for")
    for each in made:
        cells = [
            str(each.workers),
            each.shape,
            _gib(each.memory_bytes),
            _gib(each.weight_bytes),
            _seconds(each.load_s),
            _seconds(each.first_token_s),
        ]
        if not is_encoder:
            cells += [f"{each.one:.3g}", f"{each.many:.3g}"]
        mark = "  <- recommended" if each is chosen else ""
        table.add_row(*cells, each.bound + mark, style="bold" if each is chosen else None)
    return table


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.0f} MiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"


def _say(text: str, style: str = "") -> None:
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
