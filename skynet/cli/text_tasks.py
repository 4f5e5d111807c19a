"""Commands that read texts at SKYNET_REDIS_URL rather than go on with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from skynet.cli.cluster import client_of_settings
from skynet.cli.options import chosen, interruptible, request_option
from skynet.cli.root import main
from skynet.request.option_table import BY_NAME
from skynet.request.task_names import CLASSIFY, EMBED, FILL_MASK, MAX_TOP, POOLINGS

if TYPE_CHECKING:
    from skynet.request.completion import Completion

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a text, in a line.")
TIMEOUT = request_option(BY_NAME["timeout"])


@main.command()
@click.argument("text", nargs=-1, required=True, metavar="TEXT...")
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    help="How the tokens' vectors become one.  [default: as modules.json of the model, or mean]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="To length 1.  [default: as modules.json of the model]",
)
@TIMEOUT
def embed(text: tuple[str, ...], **options: Any) -> None:
    """Embed each TEXT with the encoder at SKYNET_REDIS_URL.

    Prints a JSON object a text: {"text": ..., "embedding": [...]}.
    """
    for each, found in zip(text, _read(text, EMBED, options), strict=True):
        click.echo(json.dumps({"text": each, "embedding": found.embedding}, ensure_ascii=False))


@main.command("fill-mask")
@click.argument("text")
@click.option("--top-k", type=click.IntRange(1, MAX_TOP), help="Tokens a mask.  [default: 5]")
@TIMEOUT
@JSON
def fill_mask(text: str, as_json: bool, **options: Any) -> None:
    """What the mask tokens of TEXT, [MASK] or <mask>, may stand for, with probabilities."""
    (found,) = _read((text,), FILL_MASK, options)
    if as_json:
        click.echo(json.dumps({"text": text, "predictions": found.predictions}, ensure_ascii=False))
        return
    for number, mask in enumerate(found.predictions):
        if len(found.predictions) > 1:
            click.echo(f"mask {number + 1}:")
        for best in mask:
            click.echo(f"{best['score']:.4f}  {best['token']}")


@main.command()
@click.argument("text", nargs=-1, required=True, metavar="TEXT...")
@TIMEOUT
@JSON
def classify(text: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Label each TEXT with the classifier at SKYNET_REDIS_URL, with scores."""
    for each, found in zip(text, _read(text, CLASSIFY, options), strict=True):
        if as_json:
            click.echo(json.dumps({"text": each, "labels": found.labels}, ensure_ascii=False))
            continue
        scores = ", ".join(f"{item['label']} {item['score']:.4f}" for item in found.labels)
        click.echo(f"{each}: {scores}")


def _read(texts: tuple[str, ...], task: str, options: dict[str, Any]) -> list[Completion]:
    client = client_of_settings()
    with interruptible():
        requests = client.submit_prompts(texts, task=task, **chosen(options))
        try:
            return [request.get() for request in requests]
        except KeyboardInterrupt:
            for request in requests:
                request.cancel()
            raise
