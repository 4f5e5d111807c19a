"""Commands for the cluster at SKYNET_REDIS_URL: split, worker, rebalance, generate, status."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from skynet.cli import terminal
from skynet.cli.completion import complete_places
from skynet.cli.options import (
    answer_options,
    chosen,
    interruptible,
    json_option,
    model_options,
    read_prompt,
    shape_of,
    told_to_end,
)
from skynet.cli.plan_table import dtypes_of
from skynet.cli.root import main

if TYPE_CHECKING:
    from skynet.client.client import Client


@main.command()
@click.argument("model")
@click.option(
    "--any-shape",
    is_flag=True,
    help="Use the fastest shape for the workers that are there.",
)
@click.option(
    "--stay",
    is_flag=True,
    help="Keep running, to stage again if Redis loses the weights.",
)
@click.option(
    "--lean",
    is_flag=True,
    help="Keep running, and drop the weights from Redis while every worker has its own on disk.",
)
@model_options
def split(model: str, any_shape: bool, stay: bool, lean: bool, **options: Any) -> None:
    """Stage MODEL in Redis, to run in stages x shards.

    The Redis is that of SKYNET_REDIS_URL. The orchestrator starts the plan as soon as there are
    enough workers, either bound to its places with -Q or free. If workers are lost it changes to a
    shape that the others can hold, unless --fixed. MODEL is a Hugging Face directory, a hub id, a
    .gguf file, or smollm2.
    """
    from skynet.planning.auto_dtype import gpu_dtype
    from skynet.staging.split import SplitOptions, skysplit, stay_staged

    shape = shape_of(options)
    if any_shape:
        shape.update(stages=None, shards=None)
    with terminal.progress() as progress:
        plan = skysplit(model, **shape, progress=progress)
    dtypes, on_gpus = dtypes_of(plan.summary()), gpu_dtype(shape["dtype"], plan)
    if on_gpus:
        dtypes += f" (if all workers are GPUs: {dtypes_of({**plan.summary(), 'dtype': on_gpus})})"
    terminal.err.print(f"{plan.name}, {dtypes}, is staged; `skynet status` shows when it runs")
    if any_shape:
        click.echo("celery -A skynet worker    # any number of them, on any machine")
    else:
        terminal.err.print(
            "It needs these workers, on any machine; without -Q a worker takes any place:"
        )
        for stage in plan.summary()["stages"]:
            for shard in stage["shards"]:
                layers, heads = terminal.span(stage["layers"]), terminal.span(shard["heads"])
                place = shard["address"]
                click.echo(
                    f"celery -A skynet worker -Q {place}    # layers {layers}, heads {heads}"
                )
    click.echo("celery -A skynet worker -Q orchestrator")
    if stay or lean:
        terminal.err.print("Staging it again whenever Redis loses it; press Ctrl-C to stop.")
        form = SplitOptions(weights=shape["weights"], keep_embeddings=shape["keep_embeddings"])
        stay_staged(model, form, told_to_end(), lean=lean)


@main.command()
@click.option(
    "-Q",
    "--queues",
    "place",
    shell_complete=complete_places,
    help="Place of the worker: stage0.shard1, say, or orchestrator.  [default: any place]",
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(place: str | None, celery_options: tuple[str, ...]) -> None:
    """Run a worker of the cluster at SKYNET_REDIS_URL.

    Shows its settings, then runs `celery -A skynet worker`. Without -Q it takes any place that
    needs a worker, and stands by until one does. On SIGTERM or Ctrl-C it hands its place over
    before it ends; a second signal ends it at once. Arguments after `--` are passed to Celery.
    """
    from skynet.redis_url import hide_password
    from skynet.settings import settings

    current = settings()
    words = ["celery", "-A", "skynet", "worker", *(("-Q", place) if place else ()), *celery_options]
    terminal.err.print(f"Redis    {hide_password(current.redis_url)}", highlight=False)
    terminal.err.print(
        f"Worker   {place or 'any place'}, device {current.device}, "
        f"threads {current.threads or 'by cores'}, lease {current.lease_s:g} s",
        highlight=False,
    )
    terminal.err.print(f"Command  {' '.join(words)}", highlight=False, soft_wrap=True)
    os.execv(sys.executable, [sys.executable, "-m", *words])


@main.command()
def rebalance() -> None:
    """Change to the fastest shape for the current workers now.

    Otherwise a new worker changes the shape only if the predicted gain pays for the pause;
    `skynet status` shows the prediction.
    """
    from skynet.store.connection import reachable
    from skynet.store.plans import Plans
    from skynet.store.targets import Targets

    client = client_of_settings()
    with reachable(client.url):
        Targets(client.redis).require()
        Plans(client.redis).ask_rebalance()
    terminal.err.print("Requested; `skynet status --watch` shows the change.")


@main.command()
@answer_options
def generate(prompt: str, as_json: bool, **options: Any) -> None:
    """Answer PROMPT on the cluster at SKYNET_REDIS_URL.

    Streams the answer. PROMPT - stands for standard input. With --n the answers are printed one
    after the other, and --json prints a list. Ctrl-C cancels the request. While the cluster cannot
    run it, for lack of workers, say, the reason is on stderr.
    """
    from skynet.cli.answers import answer_prompt

    text, client = read_prompt(prompt), client_of_settings()
    with interruptible():
        answers = answer_prompt(client, text, as_json, **chosen(options))
    if as_json:
        shown = [answer.to_json() for answer in answers]
        click.echo(json.dumps(shown if len(shown) > 1 else shown[0]))


@main.command()
@json_option
@click.option("--watch", is_flag=True, help="Refresh every second, until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Show the state of the cluster at SKYNET_REDIS_URL.

    Lists plan, members, queues, requests and the newest events.
    """
    from skynet.client.status import cluster_status
    from skynet.settings import settings
    from skynet.store.connection import connect

    url = settings().redis_url
    client = connect(url, timeout_s=5)
    while True:
        state = cluster_status(client, url)
        if as_json:
            click.echo(json.dumps(state))
        else:
            if watch:
                click.clear()
            terminal.print_status(state)
        if not watch:
            return
        with suppress(KeyboardInterrupt):
            threading.Event().wait(1)
            continue
        return


def client_of_settings() -> Client:
    from skynet.client.client import Client

    return Client()
