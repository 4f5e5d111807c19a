"""The command that all others hang on, and how its errors look."""

from __future__ import annotations

import os
from typing import Any

import click

from skynet import __version__
from skynet.cli import terminal
from skynet.errors import SkynetError

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


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
