"""Terminal output: progress bars and tables. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from skynet.cli.plan_table import dtypes_of, many, megabytes, plan_table, slices, span

if TYPE_CHECKING:
    from skynet.local.processes import WorkerProcess
    from skynet.staging.stager import Progress
    from skynet.store.staged_models import Verified

out = Console()
err = Console(stderr=True)


def print_plan(plan: dict[str, Any], weight_bytes: dict[str, int]) -> None:
    """Print a plan's summary; weight_bytes: of each address."""
    stages, shards = len(plan["stages"]), len(plan["stages"][0]["shards"])
    err.print(
        f"{plan['model']}, {dtypes_of(plan)}: {many(stages, 'stage')} x {many(shards, 'shard')}, "
        "each shard a Celery worker",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    err.print(plan_table(plan, weight_bytes))
    err.print()


def print_up(url: str, workers: Sequence[WorkerProcess]) -> None:
    """Print the workers of a local cluster, its URL, and commands to use it."""
    quoted = shlex.quote(url)
    for worker in workers:
        err.print(
            f"[dim]{worker.address:<16} pid {worker.pid:<8} log {worker.log}[/]",
            highlight=False,
            soft_wrap=True,
        )
    click.echo(f"export SKYNET_REDIS_URL={quoted}")
    err.print("Then, in another terminal:", highlight=False)
    for line in (
        'skynet generate "What is the capital of France?"',
        "skynet status",
        "celery -A skynet flower --address=127.0.0.1",
    ):
        err.print(f"  {line}", highlight=False, markup=False)
    err.print("Press Ctrl-C to stop the cluster.")


def print_status(status: dict[str, Any]) -> None:
    """Print the state of a cluster, of `status.cluster_status`."""
    plan, engine = status["plan"], status["engine"] or {}
    memory = status["redis_memory_bytes"]
    used = "memory unknown" if memory is None else megabytes(memory)
    _line("Redis", f"{status['redis']}, prefix {status['prefix']}, {used}")
    for reason in status["unavailable"]:
        _line("Without", reason, style="yellow")
    if status.get("plan_problem"):
        _line("Plan", status["plan_problem"], style="red")
    elif plan is None:
        _line("Plan", "none; start one with `skynet split MODEL --stages S --shards N`")
    else:
        stages, shards = len(plan["stages"]), len(plan["stages"][0]["shards"])
        _line(
            "Plan",
            f"{plan['epoch']}: {plan['model']}, {many(stages, 'stage')} x "
            f"{many(shards, 'shard')}, chord span {plan['chord_span']}",
        )
        _line("Dtypes", dtypes_of(plan, status.get("exchange_dtypes", ())))
        _line("Layers", " ".join(span(stage["layers"]) for stage in plan["stages"]))
        if status.get("links"):
            _line("Links", "; ".join(status["links"]))
    _line(
        "Engine",
        f"{engine.get('state', 'no orchestrator')}; {engine.get('running', 0)} running, "
        f"{engine.get('waiting', 0)} waiting, {status['requests']['open']} open, "
        f"{engine.get('tokens_per_s', 0):.1f} tokens/s",
    )
    if engine.get("cached_tokens"):
        cached, prompts = engine["cached_tokens"], engine.get("prompt_tokens", 0)
        _line("Cache", f"{cached:,} of {prompts:,} prompt tokens were reused")
    if engine.get("reason"):
        _line("Shape", engine["reason"])
    for obstacle in status["waiting_for"]:
        _line("Waits", obstacle, style="red")
    for text in status.get("incompatible", ()):
        _line("Version", text, style="red")
    for member in status["members"]:
        if member["problem"]:
            _line("Problem", f"{member['address']}: {member['problem']}", style="red")
    if status["members"]:
        out.print()
        _print_members(status)
    if status["events"]:
        out.print()
        for event in status["events"]:
            _print_event(event)


def _print_event(event: dict[str, Any]) -> None:
    when = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    took = f", {event['duration_s']:.2f} s" if event["duration_s"] else ""
    style = {"lost": "red", "redis": "red", "replay": "green", "ready": "green"}
    _line(when, f"{event['kind']}: {event['text']}{took}", style=style.get(event["kind"], ""))


def _print_members(status: dict[str, Any]) -> None:
    from rich.table import Table

    placed = slices(status["plan"])
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("address", no_wrap=True, min_width=13)
    table.add_column("state", no_wrap=True)
    for name in ("heads", "weights", "memory", "steps", "queue", "seen"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("worker", overflow="fold")
    for member in status["members"]:
        _, heads = placed.get(member["address"], ("", ""))
        table.add_row(
            member["address"] or member["pinned"] or "(any)",
            "leaving" if member["leaving"] else member["state"],
            heads,
            megabytes(member["weight_bytes"]) if heads else "",
            megabytes(member["resident_bytes"]),
            str(member["steps"]),
            str(status["queues"].get(member["address"], "")),
            f"{member['silent_s']:.1f} s",
            member["node"],
        )
    out.print(table)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. No cell is cut or wrapped, even if the terminal is narrower."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def print_models(models: Sequence[dict[str, Any]]) -> None:
    """Print a row for each staged model."""
    from rich.table import Table

    if not models:
        out.print(
            "No models; stage one with `skynet split MODEL`.",
            markup=False,
            highlight=False,
        )
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for name in ("size", "tiles"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for model in models:
        tiles = str(model["tiles"])
        if not model["complete"] and model["tiles_wanted"]:
            tiles += f" of {model['tiles_wanted']}"
        size = megabytes(model["num_bytes"])
        name, digest, weights = model["name"], model["digest"][:12], model["weights"]
        table.add_row(name, digest, weights, size, tiles, _state_of(model))
    out.print(table)


def _state_of(model: dict[str, Any]) -> str:
    if model["being_staged"]:
        state = "being staged"
    else:
        absent = "on the workers' disks" if model["lean"] else "[red]incomplete[/]"
        state = "complete" if model["complete"] else absent
    return state + (", in force" if model["in_force"] else "")


def print_verified(name: str, digest: str, verified: Verified) -> None:
    """Print the result of `skynet models verify` for one model."""
    from skynet.checkpoint.bad_numbers import spell_counts

    head, broken = f"{name} ({digest[:12]}): ", verified.broken
    problems = []
    if broken:
        shown = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        problems.append(f"{len(broken)} missing or corrupted: {shown}")
    if verified.bad_numbers:
        problems.append(f"NaN or infinity in {spell_counts(verified.bad_numbers)}")
    for text in problems or ["all tiles match"]:
        style = "red" if problems else ""
        out.print(f"{head}{text}", style=style, markup=False, highlight=False, soft_wrap=True)


def _line(name: str, text: str, style: str = "") -> None:
    out.print(f"{name:<9}{text}", style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr for each activity that is reported, in bytes."""
    if quiet:
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    bars = Bars(*columns, console=err)
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            bars.start()  # at the first report, so that errors before it have no bars above them
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


Counter = Callable[[int, int], None]  # done, in total


@contextmanager
def counter(what: str) -> Iterator[Counter]:
    """A progress bar on stderr of things that are counted."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=err)
    tasks: list[Any] = []

    def report(done: int, total: int) -> None:
        if not tasks:
            bars.start()
            tasks.append(bars.add_task(what, total=total))
        bars.update(tasks[0], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
