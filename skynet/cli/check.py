"""The command that compares a checkpoint with Transformers: check. It needs no cluster."""

from __future__ import annotations

import json
import sys

import click

from skynet.cli import terminal
from skynet.cli.options import COUNT, json_option
from skynet.cli.root import main


@main.command()
@click.argument("model")
@click.option("--stages", type=COUNT, default=2, show_default=True, help="Runs of layers.")
@click.option("--shards", type=COUNT, default=2, show_default=True, help="Slices of each stage.")
@click.option(
    "--prompt",
    help="What both read, without a chat template; a decoder beside an encoder reads it too, after "
    "its start token.  [default: a sentence, with a mask if the model fills masks]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What both compute in; bfloat16 shows gross mistakes only.",
)
@json_option
def check(
    model: str, stages: int, shards: int, prompt: str | None, dtype: str, as_json: bool
) -> None:
    """Does MODEL, cut into stages x shards, compute what Transformers computes? Layer by layer.

    Models that generate, encoder-decoders too, and encoders: bare, with masked words or with
    labels. Needs no Redis and no workers, and memory for one layer at a time, not for the model.
    Names the first layer and shard that differ, and compares the answer: next token, token for the
    mask, label or embedding. Exit code 0 if all is equal up to rounding, 1 if not. MODEL: as of
    `skynet split`; a .gguf file is converted first, which takes memory for all of it.
    """
    from skynet.check import check_model

    with terminal.progress(quiet=as_json) as progress:
        report = check_model(model, stages, shards, prompt=prompt, dtype=dtype, progress=progress)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        for line in report.lines():
            click.echo(line)
    if not report.equal:
        sys.exit(1)
