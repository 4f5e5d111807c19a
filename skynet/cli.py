"""The command line. Each command is a few calls; what they do lives elsewhere."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from skynet import __version__, terminal
from skynet.errors import SkynetError

if TYPE_CHECKING:
    from skynet.client import Client

DEFAULT_MODEL = "smollm2"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
COUNT = click.IntRange(min=1)


class SkynetGroup(click.Group):
    """Turns our errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SkynetError as error:
            terminal.err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
            terminal.err.print(str(error), markup=False, highlight=False, soft_wrap=True)
            ctx.exit(1)


@click.group(cls=SkynetGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skynet")
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    help="How much the workers of `run` and `up` log; SKYNET_LOG_LEVEL by default.",
)
def main(log_level: str | None) -> None:
    """Run transformers too big for one machine on several, with Celery and Redis.

    One machine, one answer:

    \b
        skynet run "What is the capital of France?"

    A cluster that stays, and questions to it from another terminal:

    \b
        skynet up --stages 2 --shards 2
        export SKYNET_REDIS_URL=...        (it prints this line)
        skynet generate "Tell me about otters"

    Several machines: start a Redis, set SKYNET_REDIS_URL everywhere, then

    \b
        celery -A skynet worker -Q orchestrator      one
        celery -A skynet worker -Q stage0.shard0     one for each shard, anywhere
        skynet split MODEL --stages 1 --shards 2     once, where the checkpoint is
    """
    if log_level:
        os.environ["SKYNET_LOG_LEVEL"] = log_level.upper()


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is cut: shared by run, up and split."""
    for option in reversed(
        (
            click.option(
                "--stages", type=COUNT, default=2, show_default=True, help="Runs of layers."
            ),
            click.option(
                "--shards", type=COUNT, default=2, show_default=True, help="Slices of each stage."
            ),
            click.option(
                "--dtype",
                type=click.Choice(["float32", "bfloat16"]),
                help="What workers compute in.  [default: the checkpoint's own]",
            ),
            click.option(
                "--chord-span",
                type=click.Choice(["layer", "stage", "auto"]),
                default="auto",
                show_default=True,
                help="Layers that one Celery chord covers: each layer a task of its own, a whole "
                "stage, or as many as keep the chords' cost small.",
            ),
            click.option(
                "--slots",
                "num_slots",
                type=COUNT,
                default=16,
                show_default=True,
                help="Sequences that run at once.",
            ),
            click.option(
                "--slot-tokens",
                type=COUNT,
                help="Longest prompt and answer together.  [default: the model's positions, at "
                "most 4096]",
            ),
        )
    ):
        command = option(command)
    return command


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a prompt is answered: shared by run and generate."""
    for option in reversed(
        (
            click.option(
                "--max-tokens", type=int, help="Longest answer, in tokens.  [default: 128]"
            ),
            click.option("--temperature", type=float, help="0 is greedy.  [default: 0]"),
            click.option("--top-k", type=int, help="Sample among the k likeliest; 0 is off."),
            click.option("--top-p", type=float, help="Sample within this probability mass."),
            click.option("--seed", type=int, help="Same seed, same text, on any cluster."),
            click.option("--stop", multiple=True, help="End before this text.  [repeatable]"),
            click.option("--raw", is_flag=True, help="No chat template: continue the text."),
            click.option(
                "--json", "as_json", is_flag=True, help="One JSON object at the end, no stream."
            ),
        )
    ):
        command = option(command)
    return command


@main.command()
@click.argument("prompt")
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="A Hugging Face directory, a hub id such as Qwen/Qwen3-0.6B, a .gguf file, or smollm2.",
)
@model_options
@answer_options
def run(prompt: str, model: str, as_json: bool, raw: bool, **options: Any) -> None:
    """A cluster on this machine, for one answer to PROMPT.

    Starts an embedded Valkey, stages x shards Celery workers and an orchestrator, splits the model
    over them, streams the answer, and leaves nothing behind.

    \b
        skynet run "Name three rivers" --stages 1 --shards 3 --max-tokens 60
        skynet run "Once upon a time" --raw --temperature 0.8 --seed 7
    """
    import time

    started = time.monotonic()
    from skynet.local import LocalCluster

    shape = _shape_of(options)
    _check_request(prompt, options)
    with _interruptible(), terminal.progress(quiet=as_json) as progress:
        cluster = LocalCluster(model, **shape, progress=progress)
        cluster.start()
    try:
        with _interruptible():
            up_s = time.monotonic() - started
            generation = cluster.submit_prompt(prompt, raw=raw, **_chosen(options))
            first_s = terminal.print_answer(generation, quiet=as_json, started=started)
            completion = generation.get()
        if as_json:
            summary = cluster.plan.summary() if cluster.plan else {}
            click.echo(json.dumps({**completion.__dict__, "plan": summary}))
    finally:
        cluster.stop()
    if not as_json:
        timings = completion.timings
        terminal.err.print(
            f"[dim]{completion.prompt_tokens} prompt tokens, {len(completion.token_ids)} tokens "
            f"({completion.finish_reason}) | first token {timings['first_token_s']:.2f} s after "
            f"the prompt, {first_s:.1f} s after the command (cluster up in {up_s:.1f} s) | "
            f"{timings['decode_tokens_per_s']:.1f} tokens/s[/]",
            highlight=False,
            soft_wrap=True,
        )


@main.command()
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="As of `skynet run`.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Listen on this loopback port, not on a Unix socket; 0 takes a free one.",
)
@model_options
def up(model: str, port: int | None, **options: Any) -> None:
    """A cluster on this machine that stays until Ctrl-C or SIGTERM.

    Prints its Redis URL and the commands that talk to it.
    """
    from skynet.local import LocalCluster

    stop = threading.Event()
    with _interruptible(), terminal.progress() as progress:
        cluster = LocalCluster(model, **_shape_of(options), port=port, progress=progress)
        cluster.start()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        terminal.print_up(cluster.url, cluster.workers)
        reported: set[str] = set()
        while not stop.wait(1):
            for address in set(cluster.failed_workers()) - reported:
                terminal.err.print(
                    f"[red]{address} has ended; its requests wait for another worker[/]"
                )
                reported.add(address)
    finally:
        terminal.err.print("shutting down")
        cluster.stop()


@main.command()
@click.argument("model")
@model_options
def split(model: str, **options: Any) -> None:
    """Cut MODEL into stages x shards and stage its weights at SKYNET_REDIS_URL.

    Workers that wait at the plan's addresses load their slices; requests are answered as soon as
    all are there. MODEL: a Hugging Face directory, a hub id, a .gguf file, or smollm2.
    """
    from skynet.splitting import skysplit

    with terminal.progress() as progress:
        plan = skysplit(model, **_shape_of(options), progress=progress)
    terminal.err.print(f"plan {plan.epoch} is in force: {plan.name}, {plan.dtype}", highlight=False)
    terminal.err.print("workers it needs, on any machine:", highlight=False)
    for stage in plan.summary()["stages"]:
        for shard in stage["shards"]:
            layers, heads = terminal.span(stage["layers"]), terminal.span(shard["heads"])
            click.echo(
                f"celery -A skynet worker -Q {shard['address']}    # layers {layers}, heads {heads}"
            )
    click.echo("celery -A skynet worker -Q orchestrator")


@main.command()
@click.argument("prompt")
@click.option("--timeout", type=float, help="Seconds until the request is given up.")
@answer_options
def generate(prompt: str, as_json: bool, raw: bool, **options: Any) -> None:
    """Ask the cluster at SKYNET_REDIS_URL to answer PROMPT, and stream the answer.

    Ctrl-C cancels the request.
    """
    client = _client()
    with _interruptible():
        generation = client.submit_prompt(prompt, raw=raw, **_chosen(options))
        try:
            terminal.print_answer(generation, quiet=as_json)
            completion = generation.get()
        except KeyboardInterrupt:
            generation.cancel()
            raise
    if as_json:
        click.echo(json.dumps(completion.__dict__))
    else:
        timings = completion.timings
        terminal.err.print(
            f"[dim]{len(completion.token_ids)} tokens ({completion.finish_reason}) | first token "
            f"{timings['first_token_s']:.2f} s | {timings['decode_tokens_per_s']:.1f} tokens/s[/]",
            highlight=False,
            soft_wrap=True,
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool) -> None:
    """Plan, members, memory, queues and requests of the cluster at SKYNET_REDIS_URL."""
    from skynet.settings import settings
    from skynet.status import cluster_status
    from skynet.store.connection import connect

    url = settings().redis_url
    found = cluster_status(connect(url, timeout_s=5), url)
    if as_json:
        click.echo(json.dumps(found))
    else:
        terminal.print_status(found)


@main.command()
@click.argument("scenarios", nargs=-1)
@click.option("--rounds", default=3, show_default=True, help="Rounds; contestants take turns.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def bench(scenarios: tuple[str, ...], rounds: int, as_json: bool) -> None:
    """Time SkyNet against others, side by side in one run: medians, spread and ratios.

    SCENARIOS: decode, chord, exchange, batch, load; all by default.
    """
    from skynet.bench import run_scenarios

    run_scenarios(scenarios, rounds, as_json, terminal.err)


def _client() -> Client:
    from skynet.client import default_client

    return default_client()


def _shape_of(options: dict[str, Any]) -> dict[str, Any]:
    names = ("stages", "shards", "dtype", "chord_span", "num_slots", "slot_tokens")
    return {name: options.pop(name) for name in names}


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given: the rest is left to the cluster's defaults."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _check_request(prompt: str, options: dict[str, Any]) -> None:
    """Refuse what no cluster could answer, before one is started."""
    from skynet.client import check_text
    from skynet.options import check_options

    check_text(prompt)
    check_options(_chosen(options), prompt_length=1, slot_tokens=sys.maxsize)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: with everything shut down."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


if __name__ == "__main__":
    main()
