"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

DEFAULT_MODEL = "smollm2"
EARLY = {"true": True, "false": False}
COUNT = click.IntRange(min=1)


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
            click.option(
                "--min-p", type=float, help="Sample what has this share of the likeliest."
            ),
            click.option(
                "--sample", "do_sample", is_flag=True, help="Sample as the model itself suggests."
            ),
            click.option("--seed", type=int, help="Same seed, same text, on any cluster."),
            click.option("--stop", multiple=True, help="End before this text.  [repeatable]"),
            click.option(
                "--repetition-penalty",
                type=float,
                help="Divide logits of tokens that were there by this.  [default: the model's, 1]",
            ),
            click.option(
                "--no-repeat-ngram-size", type=int, help="No run of so many tokens twice; 0 is off."
            ),
            click.option("--min-new-tokens", type=int, help="Shortest answer, in tokens."),
            click.option("--bad-word", "bad_words", multiple=True, help="Never.  [repeatable]"),
            click.option(
                "--logprobs",
                type=click.IntRange(0, 20),
                help="Show each token's log-probability, and so many of the likeliest tokens.",
            ),
            click.option(
                "--num-beams",
                type=click.IntRange(1, 64),
                help="Search with so many beams; the answer comes when it is over.  [default: the "
                "model's, 1]",
            ),
            click.option(
                "--length-penalty",
                type=float,
                help="Of a beam search: more than 0 prefers long answers.  [default: the model's, "
                "1]",
            ),
            click.option(
                "--early-stopping",
                type=click.Choice(["true", "false", "never"]),
                callback=lambda _context, _option, value: EARLY.get(value, value),
                help="End a beam search with as many answers as beams; never: when none can become "
                "better.  [default: the model's, false]",
            ),
            click.option(
                "--from", "source_language", metavar="CODE", help="Language of a text to translate."
            ),
            click.option("--to", "target_language", metavar="CODE", help="Language to answer in."),
            click.option("--raw", is_flag=True, help="No chat template: continue the text."),
            click.option(
                "--json", "as_json", is_flag=True, help="One JSON object at the end, no stream."
            ),
        )
    ):
        command = option(command)
    return command


def shape_of(options: dict[str, Any]) -> dict[str, Any]:
    names = ("stages", "shards", "fixed", "dtype", "chord_span", "num_slots", "slot_tokens")
    return {name: options.pop(name) for name in names}


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given: the rest is left to the cluster's defaults."""
    given = (pair for pair in options.items() if pair[1] not in (None, ()))
    return {name: list(v) if isinstance(v, tuple) else v for name, v in given if v is not False}


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: with everything shut down."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def told_to_end() -> threading.Event:
    """Set by Ctrl-C or SIGTERM, from here on."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
