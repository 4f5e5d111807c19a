"""The command `check`, which compares a checkpoint with Transformers. It needs no cluster."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from skynet.cli import terminal
from skynet.cli.options import EXPERTS, json_option, shards_option, stages_option
from skynet.cli.root import main


@main.command()
@click.argument("model")
@stages_option
@shards_option
@click.option(
    "--prompt",
    help="Input of both, without a chat template; an encoder-decoder's decoder gets it, too, after "
    "its start token.  [default: a sentence, with a mask token if the model fills masks]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default="float32",
    show_default=True,
    help="Precision of both; bfloat16 shows gross errors only. int8: SkyNet's activations, where "
    "MODEL's weights are quantised; Transformers computes in float32.",
)
@EXPERTS
@json_option
def check(model: str, stages: int, shards: int, as_json: bool, **options: Any) -> None:
    """Compare MODEL in stages x shards with Transformers.

    Computes each layer with both: of decoders, encoder-decoders and encoders (bare, or with a
    masked-language-model or classification head). Needs neither Redis nor workers, and memory for
    one layer at a time. Names the first layer and shard that differ, and compares the answer: next
    token, token for the mask, label or embedding. If weights are NaN or infinite, names their
    tensors instead. The exit code is 0 if all is equal up to rounding, else 1. MODEL is as for
    `skynet split`; a .gguf file is converted first.
    """
    from skynet.check import check_model

    with terminal.progress(quiet=as_json) as progress:
        report = check_model(model, stages, shards, **options, progress=progress)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        for line in report.lines():
            click.echo(line)
    if not report.equal:
        sys.exit(1)
