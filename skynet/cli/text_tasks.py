"""Text tasks on the cluster at SKYNET_REDIS_URL: embed, fill-mask, classify, rerank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skynet.cli.cluster import client_of_settings
from skynet.cli.options import chosen, interruptible, request_option
from skynet.cli.root import main
from skynet.cli.waiting import WaitingNotices
from skynet.request.option_table import BY_NAME
from skynet.request.task_names import CLASSIFY, EMBED, FILL_MASK, MAX_TOP, POOLINGS, RERANK

if TYPE_CHECKING:
    from skynet.request.completion import Completion
    from skynet.request.prompts import Prompt

JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line for each text."
)
TIMEOUT = request_option(BY_NAME["timeout"])


@main.command()
@click.argument("text", nargs=-1, required=True, metavar="TEXT...")
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    help="Pooling of hidden states.  [default: the model's (modules.json), or mean]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Scale the embedding to length 1.  [default: the model's, or no]",
)
@click.option(
    "--prompt-name",
    metavar="NAME",
    help="Prompt of the model before each text, such as query.  [default: the model's, or none]",
)
@TIMEOUT
def embed(text: tuple[str, ...], **options: Any) -> None:
    """Embed each TEXT with the model at SKYNET_REDIS_URL.

    Prints a JSON object for each text: {"text": ..., "embedding": [...]}.
    """
    for each, completion in zip(text, _complete(text, EMBED, options), strict=True):
        _print_json(text=each, embedding=completion.embedding)


@main.command("fill-mask")
@click.argument("text")
@click.option(
    "--top-k",
    type=click.IntRange(1, MAX_TOP),
    help="Predictions for each mask.  [default: 5]",
)
@TIMEOUT
@JSON
def fill_mask(text: str, as_json: bool, **options: Any) -> None:
    """Predict the mask tokens of TEXT, with probabilities.

    The mask token is that of the model at SKYNET_REDIS_URL: [MASK] or <mask>, say.
    """
    (completion,) = _complete((text,), FILL_MASK, options)
    if as_json:
        _print_json(text=text, predictions=completion.predictions)
        return
    for number, mask in enumerate(completion.predictions):
        if len(completion.predictions) > 1:
            click.echo(f"mask {number + 1}:")
        for best in mask:
            click.echo(f"{best['score']:.4f}  {best['token']}")


@main.command()
@click.argument("text", nargs=-1, required=True, metavar="TEXT...")
@TIMEOUT
@JSON
def classify(text: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Classify each TEXT with the model at SKYNET_REDIS_URL.

    Prints the labels of each text with their scores, best first.
    """
    for each, completion in zip(text, _complete(text, CLASSIFY, options), strict=True):
        if as_json:
            _print_json(text=each, labels=completion.labels)
            continue
        scores = ", ".join(f"{item['label']} {item['score']:.4f}" for item in completion.labels)
        click.echo(f"{each}: {scores}")


@main.command()
@click.argument("query")
@click.argument("document", nargs=-1, required=True, metavar="DOCUMENT...")
@click.option(
    "--instruction", metavar="TEXT", help="What to look for, if the model reads instructions."
)
@TIMEOUT
@JSON
def rerank(query: str, document: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Rank each DOCUMENT for QUERY with the model at SKYNET_REDIS_URL.

    Prints the documents with their scores, best first.
    """
    pairs = tuple((query, each) for each in document)
    scores = [completion.score or 0.0 for completion in _complete(pairs, RERANK, options)]
    for place in sorted(range(len(scores)), key=lambda place: -scores[place]):
        if as_json:
            _print_json(index=place, document=document[place], score=scores[place])
        else:
            click.echo(f"{scores[place]:.4f}  {document[place]}")


def _print_json(**fields: Any) -> None:
    click.echo(json.dumps(fields, ensure_ascii=False))


def _complete(texts: Sequence[Prompt], task: str, options: dict[str, Any]) -> list[Completion]:
    """The completions of a text task, in the order of the texts; Ctrl-C cancels its requests."""
    client = client_of_settings()
    with interruptible():
        requests = client.submit_prompts(texts, task=task, **chosen(options))
        try:
            with WaitingNotices(client.url) as notices:
                completions = []
                for request in requests:
                    completions.append(request.get())
                    notices.progress()
                return completions
        except KeyboardInterrupt:
            for request in requests:
                request.cancel()
            raise
