"""Commands that start a cluster on this machine: run, up, bench."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from skynet.cli import terminal
from skynet.cli.options import (
    DEFAULT_MODEL,
    answer_options,
    chosen,
    interruptible,
    json_option,
    model_options,
    read_prompt,
    shape_of,
    told_to_end,
)
from skynet.cli.root import main

if TYPE_CHECKING:
    from skynet.local.cluster import LocalCluster


@main.command()
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Hugging Face directory, hub id such as Qwen/Qwen3-0.6B, .gguf file, or smollm2.",
)
@model_options
@answer_options
def run(prompt: str, model: str, as_json: bool, **options: Any) -> None:
    """Answer PROMPT on a temporary cluster on this machine.

    Starts an embedded Valkey, stages x shards Celery workers and an orchestrator, splits the model
    over them, streams the answer, and stops them all. PROMPT - stands for standard input.

    \b
        skynet run "Name three rivers" --stages 1 --shards 3 --max-tokens 60
        skynet run "Once upon a time" --raw --temperature 0.8 --seed 7
    """
    started = time.monotonic()
    from skynet.cli.answers import Startup, answer_prompt
    from skynet.local.cluster import LocalCluster

    shape, text = shape_of(options), read_prompt(prompt)
    check_request(text, options)
    with interruptible(), terminal.progress(quiet=as_json) as progress:
        cluster = LocalCluster(model, **shape, progress=progress)
        cluster.start()
    try:
        with interruptible():
            up = Startup(started, time.monotonic())
            if not as_json:
                show_plan(cluster)
            answers = answer_prompt(cluster.client, text, as_json, up, **chosen(options))
        if as_json:
            plan = cluster.plan.summary() if cluster.plan else {}
            shown = [{**answer.to_json(), "plan": plan} for answer in answers]
            click.echo(json.dumps(shown if len(shown) > 1 else shown[0]))
    finally:
        cluster.stop()


@main.command()
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="As for `skynet run`.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port of Redis on the loopback interface; 0 takes a free one.  [default: a Unix socket]",
)
@model_options
@click.option("--spares", type=click.IntRange(min=0), default=0, help="Workers that stand by.")
def up(model: str, port: int | None, spares: int, **options: Any) -> None:
    """Run a cluster on this machine until Ctrl-C or SIGTERM.

    Prints its Redis URL and commands to use it. A worker that dies is started again; meanwhile
    requests continue if the other workers can hold the model.
    """
    from skynet.local.cluster import LocalCluster

    with interruptible(), terminal.progress() as progress:
        cluster = LocalCluster(
            model, **shape_of(options), port=port, spares=spares, elastic=True, progress=progress
        )
        cluster.start()
    try:
        stop = told_to_end()
        show_plan(cluster)
        terminal.print_up(cluster.url, cluster.workers)
        while not stop.wait(1):
            for name in cluster.processes.failed():
                terminal.err.print(f"[red]{name} has ended; starting it again[/]")
                cluster.processes.restart(name)
    finally:
        terminal.err.print("Shutting down.")
        cluster.stop()


@main.command()
@click.argument("scenarios", nargs=-1)
@click.option(
    "--rounds",
    default=3,
    show_default=True,
    help="Rounds of measurements.",
)
@json_option
def bench(scenarios: tuple[str, ...], rounds: int, as_json: bool) -> None:
    """Time SkyNet and its alternatives in turn.

    Prints medians, spread and ratios. SCENARIOS are decode, batch, prefill, weights, cost,
    bandwidth, chord, aof, exchange, load, reload, recover, turns, http and plan; all by default.
    decode, prefill, weights, cost and bandwidth with -qwen3 behind them run random weights in the
    shape of Qwen3-0.6B, which need 8 GB of memory.
    """
    from skynet.bench import run_scenarios

    run_scenarios(scenarios, rounds, as_json, terminal.err)


def show_plan(cluster: LocalCluster) -> None:
    """Print what each worker of a cluster that has just started has of the model."""
    from skynet.settings import settings
    from skynet.store.members import Members

    members = Members(cluster.client.redis, settings().lease_s).all()
    if cluster.plan is not None:
        sizes = {member.address: member.weight_bytes for member in members}
        terminal.print_plan(cluster.plan.summary(), sizes)


def check_request(prompt: str, options: dict[str, Any]) -> None:
    """Refuse a request that no cluster can answer before one is started."""
    from skynet.request.option_table import ARGUMENTS
    from skynet.request.option_values import check_value
    from skynet.request.options import Limits, check_options
    from skynet.request.prompts import check_text

    check_text(prompt)
    given = chosen(options)
    del given["raw"]
    for argument in ARGUMENTS:
        if argument.name in given:
            check_value(argument, given.pop(argument.name))
    # The model is not known yet: accept options that only an encoder-decoder has, or never has.
    has_encoder = "structured_outputs" not in given
    start = {"decoder_start_token_id": 0} if has_encoder else {}
    check_options({**start, **given}, 1, Limits(sys.maxsize, has_encoder=has_encoder))
