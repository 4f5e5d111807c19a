"""The root command, its help and its error output."""

from __future__ import annotations

import os
from typing import Any

import click

from skynet import __version__
from skynet.cli import terminal
from skynet.cli.config_file import use_config_file
from skynet.errors import SkynetError

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MAX_SUMMARY = 200


class SkynetCommand(click.Command):
    """A command whose summary in the group's help is a whole sentence at any width."""

    def get_short_help_str(self, limit: int = 0) -> str:
        return super().get_short_help_str(MAX_SUMMARY)


class SkynetGroup(click.Group):
    """Prints a SkynetError in one line, with exit code 1."""

    command_class = SkynetCommand
    group_class = type

    def get_short_help_str(self, limit: int = 0) -> str:
        return super().get_short_help_str(MAX_SUMMARY)

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
    help="Log level of the workers of `run` and `up`.  [default: SKYNET_LOG_LEVEL]",
)
@click.option(
    "--config",
    metavar="FILE",
    help="Settings file in TOML.  [default: SKYNET_CONFIG, or skynet.toml of this directory]",
)
def main(log_level: str | None, config: str | None) -> None:
    """Run a transformer that is too big for one machine on several, with Celery and Redis.

    Answer one prompt on this machine:

    \b
        skynet run "What is the capital of France?"

    Start a cluster on this machine, and send prompts from another terminal:

    \b
        skynet up --stages 2 --shards 2
        export SKYNET_REDIS_URL=...        (printed by skynet up)
        skynet generate "Tell me about otters"

    Run a cluster on several machines: start a Redis, set SKYNET_REDIS_URL on each, then

    \b
        celery -A skynet worker -Q orchestrator      one; more stand by
        celery -A skynet worker                      one for each shard; more are spares
        skynet split MODEL --stages 1 --shards 2     once, where the checkpoint is
    """
    use_config_file(config)
    if log_level:
        os.environ["SKYNET_LOG_LEVEL"] = log_level.upper()
