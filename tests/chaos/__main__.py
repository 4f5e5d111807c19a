"""The command line of the chaos run."""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.chaos.cases import tiny_checkpoint
from tests.chaos.faults import FAULTS, GATEWAY_FAULTS, PROXY_FAULTS, SENTINEL_FAULTS
from tests.chaos.report import show_logs
from tests.chaos.run import Plan, Run
from tests.chaos.undisturbed import WarmupFailed

TINY = "tiny"


def _faults(_: Any, __: Any, text: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    chosen = tuple(FAULTS) if text == "all" else tuple(text.split(","))
    unknown = sorted(set(chosen) - set(FAULTS))
    if unknown:
        raise click.BadParameter(f"unknown {', '.join(unknown)}; choose of {', '.join(FAULTS)}")
    return chosen


@click.command(context_settings={"show_default": True})
@click.option("--seconds", default=600.0, help="How long to attack.")
@click.option("--seed", type=int, help="Of all random choices.  [default: a new one]")
@click.option("--model", default=TINY, help="`tiny`, `smollm2` or a checkpoint's directory.")
@click.option("--stages", default=2)
@click.option("--shards", default=2)
@click.option("--spares", default=1, help="Workers without a place.")
@click.option("--orchestrators", default=2)
@click.option("--gateways", default=2, help="Half of the requests go over HTTP; 0: none do.")
@click.option("--pinned", is_flag=True, help="Shard workers with -Q: no spares, no joins.")
@click.option("--sentinel", is_flag=True, help="A master and a replica behind three Sentinels.")
@click.option("--faults", default="all", callback=_faults, help="Names with commas, all, or none.")
@click.option("--clients", default=8, help="Concurrent requests.")
@click.option("--gap", "gap_s", default=4.0, help="Maximum seconds between two faults.")
@click.option("--overlap", default=2, help="Maximum concurrent faults.")
@click.option("--request-timeout", "request_timeout_s", default=120.0)
@click.option("--max-tokens", default=200)
@click.option("--chord-span", default="auto")
@click.option("--weights", type=click.Choice(["bf16"]), help="Round the model's matrices.")
@click.option("--keep", is_flag=True, help="Keep the logs of a successful run too.")
def main(seed: int | None, keep: bool, model: str, **options: Any) -> None:
    """Inject faults into a real cluster under load. Exit code 1 if any token is wrong or lost."""
    console = Console(soft_wrap=True)
    seed = secrets.randbits(31) if seed is None else seed
    if options["pinned"]:
        options["spares"] = 0
        options["faults"] = tuple(name for name in options["faults"] if name != "join")
    impossible = PROXY_FAULTS if options["sentinel"] else SENTINEL_FAULTS
    if not options["gateways"]:
        impossible = impossible | GATEWAY_FAULTS
    options["faults"] = tuple(name for name in options["faults"] if name not in impossible)
    command = _command(seed)
    console.print(f"seed {seed}: {command}", highlight=False)
    directory = Path(tempfile.mkdtemp(prefix="skynet-chaos-"))  # short, for a Unix socket
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - started:6.0f} s  {text}", highlight=False)

    try:
        chosen = str(tiny_checkpoint(directory)) if model == TINY else model
        report = Run(Plan(seed=seed, command=command, model=chosen, **options), directory, say)()
    except BaseException as error:
        show_logs(console, directory)
        console.print(f"seed {seed}: {type(error).__name__}; logs are kept in {directory}")
        if isinstance(error, WarmupFailed):
            sys.exit(f"before the first fault: {error}")
        raise
    if report.wrong:
        show_logs(console, directory)
        _show_faults(console, report.faults)
    report.show(console)
    if report.wrong or keep:
        console.print(f"logs are kept in {directory}", highlight=False)
    else:
        shutil.rmtree(directory)
    sys.exit(1 if report.wrong else 0)


def _command(seed: int) -> str:
    """The command that repeats this run."""
    words = list(sys.argv[1:])
    if not any(word.partition("=")[0] == "--seed" for word in words):
        words += ["--seed", str(seed)]
    return shlex.join(["python", "-m", "tests.chaos", *words])


def _show_faults(console: Console, faults: list[Any]) -> None:
    console.rule("faults")
    for fault in faults:
        at = time.strftime("%H:%M:%S", time.localtime(fault.at))
        text = f"{at} {fault.kind} {fault.until - fault.at:.1f} s: {', '.join(fault.notes)}"
        console.print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
