"""The command line. Each command is a few calls; what they do lives elsewhere."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
        celery -A skynet worker -Q orchestrator      one, or more that stand by
        celery -A skynet worker                      one for each shard, and spares, anywhere
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
                "--fixed",
                is_flag=True,
                help="Wait for lost workers, rather than go on in a smaller shape without them.",
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
@click.option("--spares", type=click.IntRange(min=0), default=0, help="Workers that stand by.")
def up(model: str, port: int | None, spares: int, **options: Any) -> None:
    """A cluster on this machine that stays until Ctrl-C or SIGTERM.

    Prints its Redis URL and the commands that talk to it. A worker that dies is started again; its
    requests go on meanwhile as far as the others can hold the model.
    """
    from skynet.local import LocalCluster

    stop = threading.Event()
    with _interruptible(), terminal.progress() as progress:
        cluster = LocalCluster(
            model, **_shape_of(options), port=port, spares=spares, elastic=True, progress=progress
        )
        cluster.start()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        terminal.print_up(cluster.url, cluster.workers)
        while not stop.wait(1):
            for name in cluster.failed_workers():
                terminal.err.print(f"[red]{name} has ended; starting it again[/]")
                cluster.restart_worker(name)
    finally:
        terminal.err.print("shutting down")
        cluster.stop()


@main.command()
@click.argument("model")
@click.option("--any-shape", is_flag=True, help="The best shape for the workers that are there.")
@click.option("--stay", is_flag=True, help="Stay, and stage again should Redis lose the weights.")
@model_options
def split(model: str, any_shape: bool, stay: bool, **options: Any) -> None:
    """Stage MODEL's weights at SKYNET_REDIS_URL and ask for it to be run in stages x shards.

    The orchestrator puts the plan in force as soon as there are workers for it, bound to its
    addresses (-Q) or free for any. When workers are lost it falls back to a shape that the others
    can hold, unless --fixed. MODEL: a Hugging Face directory, a hub id, a .gguf file, or smollm2.
    """
    from skynet.splitting import skysplit, stay_staged

    shape = _shape_of(options)
    if any_shape:
        shape.update(stages=None, shards=None)
    with terminal.progress() as progress:
        plan = skysplit(model, **shape, progress=progress)
    terminal.err.print(f"{plan.name}, {plan.dtype}, is asked for; see `skynet status`")
    if any_shape:
        click.echo("celery -A skynet worker    # any number, on any machine")
    else:
        terminal.err.print("workers it needs, on any machine; without -Q they take any place:")
        for stage in plan.summary()["stages"]:
            for shard in stage["shards"]:
                layers, heads = terminal.span(stage["layers"]), terminal.span(shard["heads"])
                place = shard["address"]
                click.echo(
                    f"celery -A skynet worker -Q {place}    # layers {layers}, heads {heads}"
                )
    click.echo("celery -A skynet worker -Q orchestrator")
    if stay:
        terminal.err.print("staying to stage it again if Redis loses it; Ctrl-C ends this")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stay_staged(model, stop)


@main.command()
@click.option(
    "-Q", "--queues", "place", help="stage0.shard1 or orchestrator; any place by default."
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(place: str | None, celery_options: tuple[str, ...]) -> None:
    """A worker of the cluster at SKYNET_REDIS_URL: `celery -A skynet worker`, settings shown.

    Without -Q it takes any place that needs a worker, and stands by until there is one. SIGTERM or
    Ctrl-C hands its place over first; a second one does not wait. What follows `--` goes to Celery.
    """
    from skynet.settings import hide_password, settings

    current = settings()
    words = ["celery", "-A", "skynet", "worker", *(("-Q", place) if place else ()), *celery_options]
    terminal.err.print(f"Redis    {hide_password(current.redis_url)}", highlight=False)
    terminal.err.print(
        f"Worker   {place or 'any place'}, device {current.device}, "
        f"threads {current.threads or 'by the cores'}, lease {current.lease_s:g} s",
        highlight=False,
    )
    terminal.err.print(f"Command  {' '.join(words)}", highlight=False, soft_wrap=True)
    os.execv(sys.executable, [sys.executable, "-m", *words])


@main.command()
def rebalance() -> None:
    """Let the orchestrator choose the best shape for the workers that are there, now.

    Without it a worker that joins changes the shape only if that is predicted to pay for the pause;
    `skynet status` shows why or why not.
    """
    from skynet.store.connection import reachable
    from skynet.store.plans import Plans

    client = _client()
    with reachable(client.url):
        plans = Plans(client.redis)
        plans.require_target()
        plans.ask_rebalance()
    terminal.err.print("asked; `skynet status --watch` shows what comes of it")


@main.command()
@click.argument("prompt")
@click.option("--timeout", type=float, help="Seconds until the request is given up.")
@click.option(
    "--priority",
    type=click.IntRange(0, 9),
    help="Who waits with a higher one runs first.  [default: 0]",
)
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
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Plan, members, memory, queues, requests, latest events of the cluster at SKYNET_REDIS_URL."""
    from skynet.settings import settings
    from skynet.status import cluster_status
    from skynet.store.connection import connect

    url = settings().redis_url
    client = connect(url, timeout_s=5)
    while True:
        found = cluster_status(client, url)
        if as_json:
            click.echo(json.dumps(found))
        else:
            if watch:
                click.clear()
            terminal.print_status(found)
        if not watch:
            return
        with suppress(KeyboardInterrupt):
            threading.Event().wait(1)
            continue
        return


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


@main.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """Models whose weights lie in the Redis at SKYNET_REDIS_URL, whole or half.

    \b
        skynet models
        skynet models verify
        skynet models remove 3f2a
    """
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from skynet.store.connection import connect, reachable
    from skynet.store.staged_models import list_models

    with reachable(), connect() as client:
        found = [asdict(model) for model in list_models(client)]
    if as_json:
        click.echo(json.dumps({"models": found}))
    else:
        terminal.print_models(found)


@models.command("remove")
@click.argument("digest")
@click.option("--force", is_flag=True, help="Also if it is in force.")
def remove_staged(digest: str, force: bool) -> None:
    """Free the weights and files of the model whose digest starts with DIGEST."""
    from skynet.store.connection import connect, reachable
    from skynet.store.staged_models import find_model, remove_model

    with reachable(), connect() as client:
        model = find_model(client, digest)
        remove_model(client, model, force=force)
    terminal.err.print(
        f"freed {model.num_bytes / 1e6:.1f} MB of {model.name} ({model.digest[:12]})",
        highlight=False,
    )


@models.command("verify")
@click.argument("digest", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify_staged(digest: str, as_json: bool) -> None:
    """Read the tiles of all models, or of the one whose digest starts with DIGEST, and check them.

    Exit code 1 if any tile or file is missing or corrupted.
    """
    from skynet.store.connection import connect, reachable
    from skynet.store.staged_models import find_model, list_models, verify_model

    with reachable(), connect() as client, terminal.progress(quiet=as_json) as progress:
        chosen = [find_model(client, digest)] if digest else list_models(client)
        found = {model.digest: verify_model(client, model, progress) for model in chosen}
    if as_json:
        click.echo(json.dumps({"broken": found}))
    else:
        terminal.print_verified(
            [(model.name, model.digest, found[model.digest]) for model in chosen]
        )
    if any(found.values()):
        sys.exit(1)


def _client() -> Client:
    from skynet.client import default_client

    return default_client()


def _shape_of(options: dict[str, Any]) -> dict[str, Any]:
    names = ("stages", "shards", "fixed", "dtype", "chord_span", "num_slots", "slot_tokens")
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
