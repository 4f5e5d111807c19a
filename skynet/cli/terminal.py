"""What people see: streamed answers, progress bars, the status page. Answers go to stdout, all
else to stderr.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

if TYPE_CHECKING:
    from skynet.client.client import Generation
    from skynet.local.processes import WorkerProcess
    from skynet.request.completion import Completion
    from skynet.staging.stager import Progress

out = Console()
err = Console(stderr=True)


def print_answer(generation: Generation, quiet: bool, started: float = 0.0) -> float:
    """Print pieces as they come; returns when the first token came, seconds after `started`."""
    first = 0.0
    for token in generation.tokens():
        first = first or time.monotonic() - started
        if not quiet and token.text:
            click.echo(token.text, nl=False)
            sys.stdout.flush()
    if not quiet:
        click.echo()
    return first


def print_logprobs(completion: Completion) -> None:
    """A line for each token, if they were asked for."""
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=False):
        others = "".join(f"  {other} {value:.4f}" for other, value in entry["top"])
        click.echo(f"token {token_id} {entry['logprob']:.4f}{' |' if others else ''}{others}")


def print_beams(completion: Completion) -> None:
    """The other hypotheses of a beam search, and all scores."""
    for number, beam in enumerate(completion.beams):
        text = "" if number == 0 else f" {beam['text'] or beam['token_ids']}"
        err.print(f"beam {number + 1}: {beam['score']:.4f}{text}", highlight=False, markup=False)


def print_end(completion: Completion) -> None:
    """What there is to say of an answer beside its text."""
    print_logprobs(completion)
    print_beams(completion)
    timings = completion.timings
    err.print(
        f"[dim]{len(completion.token_ids)} tokens ({completion.finish_reason}) | first token "
        f"{timings['first_token_s']:.2f} s | {timings['decode_tokens_per_s']:.1f} tokens/s[/]",
        highlight=False,
        soft_wrap=True,
    )


def print_up(url: str, workers: Sequence[WorkerProcess]) -> None:
    quoted = shlex.quote(url)
    for worker in workers:
        err.print(
            f"[dim]{worker.address:<16} pid {worker.pid:<8} log {worker.log}[/]",
            highlight=False,
            soft_wrap=True,
        )
    click.echo(f"export SKYNET_REDIS_URL={quoted}")
    err.print("then, in another terminal:", highlight=False)
    for line in (
        'skynet generate "What is the capital of France?"',
        "skynet status",
        "celery -A skynet flower --address=127.0.0.1",
    ):
        err.print(f"  {line}", highlight=False, markup=False)
    err.print("Ctrl-C ends it.")


def print_status(found: dict[str, Any]) -> None:
    plan, engine = found["plan"], found["engine"] or {}
    _line("Redis", f"{found['redis']}, {_mb(found['redis_memory_bytes'])}")
    if plan is None:
        _line("Plan", "none: run `skynet split MODEL --stages S --shards N`")
    else:
        stages, shards = len(plan["stages"]), len(plan["stages"][0]["shards"])
        _line(
            "Plan",
            f"{plan['epoch']}: {plan['model']}, {_many(stages, 'stage')} x "
            f"{_many(shards, 'shard')}, {plan['dtype']}, chord span {plan['chord_span']}",
        )
        _line("Layers", " ".join(span(stage["layers"]) for stage in plan["stages"]))
    _line(
        "Engine",
        f"{engine.get('state', 'no orchestrator')}; {engine.get('running', 0)} running, "
        f"{engine.get('waiting', 0)} waiting, {found['requests']['open']} open",
    )
    if engine.get("reason"):
        _line("Shape", engine["reason"])
    if found["missing"]:
        _line("Missing", ", ".join(found["missing"]), style="red")
    for member in found["members"]:
        if member["problem"]:
            _line("Problem", f"{member['address']}: {member['problem']}", style="red")
    if found["members"]:
        out.print()
        _print_members(found)
    if found["events"]:
        out.print()
        for event in found["events"]:
            _print_event(event)


def _print_event(event: dict[str, Any]) -> None:
    when = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    took = f", {event['duration_s']:.2f} s" if event["duration_s"] else ""
    style = {"lost": "red", "redis": "red", "replay": "green", "ready": "green"}
    _line(when, f"{event['kind']}: {event['text']}{took}", style=style.get(event["kind"], ""))


def _print_members(found: dict[str, Any]) -> None:
    from rich.table import Table

    stages = found["plan"]["stages"] if found["plan"] else []
    heads = {shard["address"]: shard["heads"] for stage in stages for shard in stage["shards"]}
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("address", no_wrap=True, min_width=13)
    table.add_column("state", no_wrap=True)
    for name in ("heads", "weights", "memory", "steps", "queue", "seen", "pid"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("host")
    for member in found["members"]:
        own = heads.get(member["address"])
        table.add_row(
            member["address"] or member["pinned"] or "(any)",
            "leaving" if member["leaving"] else member["state"],
            span(own) if own else "",
            _mb(member["weight_bytes"]) if own else "",
            _mb(member["resident_bytes"]),
            str(member["steps"]),
            str(found["queues"].get(member["address"], "")),
            f"{member['silent_s']:.1f} s",
            str(member["pid"]),
            member["host"],
        )
    out.print(table)


def print_models(found: Sequence[dict[str, Any]]) -> None:
    """What `skynet models` shows: a row for each model."""
    from rich.table import Table

    if not found:
        out.print("no models: run `skynet split MODEL`", markup=False, highlight=False)
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    for name in ("size", "tiles"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for model in found:
        tiles = str(model["tiles"])
        if not model["complete"] and model["tiles_wanted"]:
            tiles += f" of {model['tiles_wanted']}"
        table.add_row(
            model["name"], model["digest"][:12], _mb(model["num_bytes"]), tiles, _state_of(model)
        )
    out.print(table)


def _state_of(model: dict[str, Any]) -> str:
    if model["being_staged"]:
        state = "being staged"
    else:
        state = "complete" if model["complete"] else "[red]incomplete[/]"
    return state + (", in force" if model["in_force"] else "")


def print_verified(found: Sequence[tuple[str, str, list[str]]]) -> None:
    """What `skynet models verify` found: (name, digest, what is broken) of each model."""
    for name, digest, broken in found:
        head = f"{name} ({digest[:12]}): "
        if not broken:
            out.print(f"{head}all tiles match", markup=False, highlight=False, soft_wrap=True)
            continue
        shown = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        text = f"{head}{len(broken)} missing or corrupted: {shown}"
        out.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def _line(name: str, text: str, style: str = "") -> None:
    out.print(f"{name:<9}{text}", style=style, markup=False, highlight=False, soft_wrap=True)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def span(bounds: list[int]) -> str:
    return f"[{bounds[0]}, {bounds[1]})"


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A progress bar for each thing that is reported: bytes, on stderr."""
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
            bars.start()  # not before there is something to show: errors come first
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
