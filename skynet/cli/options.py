"""Options that several commands share, and their values."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from skynet.cli.structured_options import FLAGS as STRUCTURED_FLAGS
from skynet.cli.structured_options import structured_outputs
from skynet.errors import BadRequest
from skynet.request.option_table import ARGUMENTS, MAX_INTEGER, OPTIONS, Kind, Option
from skynet.request.prompts import MAX_PROMPT_CHARACTERS

DEFAULT_MODEL = "smollm2"
MAX_PROMPT_BYTES = 4 * MAX_PROMPT_CHARACTERS  # of UTF-8
COUNT = click.IntRange(min=1)

Command = Callable[..., Any]
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
stages_option = click.option(
    "--stages",
    type=COUNT,
    default=2,
    show_default=True,
    help="Pipeline stages, which split the layers.",
)
shards_option = click.option(
    "--shards",
    type=COUNT,
    default=2,
    show_default=True,
    help="Shards of each stage, which split its heads and columns.",
)


EXPERTS = click.option(
    "--experts",
    type=click.Choice(["auto", "columns", "whole"]),
    default="auto",
    show_default=True,
    help="How a mixture's experts are cut: each shard has its columns of every expert, or some "
    "experts whole; auto: what takes less time for a token.",
)
SLOTS = (
    click.option(
        "--slots",
        "num_slots",
        type=COUNT,
        default=16,
        show_default=True,
        help="Sequences that run at once; each has a slot in the KV cache.",
    ),
    click.option(
        "--slot-tokens",
        type=COUNT,
        help="Longest prompt and answer together, in tokens.  [default: the model's positions, "
        "at most 4096]",
    ),
)


def request_option(option: Option) -> Callable[[Command], Command]:
    """The flag of a row of the option table, unset by default: the cluster has the defaults."""
    settings: dict[str, Any] = {"metavar": option.metavar}
    if option.kind is Kind.FLAG:
        settings |= {"is_flag": True, "default": None}
    elif option.kind is Kind.CHOICE:
        values = {str(choice).lower(): choice for choice in option.choices}
        settings["type"] = click.Choice(list(values))
        settings["callback"] = lambda _context, _parameter, word: values.get(word)
    elif option.kind is Kind.TEXTS:
        settings["multiple"] = True
    elif option.kind is Kind.TOKEN_BIASES:
        settings["multiple"] = True
        settings["callback"] = lambda _context, _parameter, words: _biases(words)
    else:
        settings["type"] = _type_of(option)
    return click.option(option.flag, option.name, help=_help_of(option), **settings)


def _type_of(option: Option) -> Any:
    """The type of a value in click; limits that are not shown here are checked at submit."""
    if option.kind is Kind.INTEGER:
        low, high = int(option.minimum), int(option.maximum)
        return int if high >= MAX_INTEGER else click.IntRange(low, high)
    return float if option.kind is Kind.NUMBER else str


def _biases(words: Sequence[str]) -> dict[str, float] | None:
    """The biases of tokens, of texts ID=BIAS; the ids are checked at submit."""
    biases: dict[str, float] = {}
    for word in words:
        token, _, bias = word.partition("=")
        try:
            number = float(bias)
        except ValueError:
            raise click.BadParameter(f"{word!r:.80} is not ID=BIAS, such as 198=-100") from None
        if token in biases:
            raise click.BadParameter(f"token {token:.80} has two biases, give one")
        biases[token] = number
    return biases or None


def _help_of(option: Option) -> str:
    default = option.shown_default
    if option.config_field and not option.default_text:
        default = f"the model's, or {default}"
    is_list = option.kind in (Kind.TEXTS, Kind.TOKEN_BIASES)
    notes = [f"default: {default}"] + ["repeatable"] * is_list
    return f"{option.help}  [{'; '.join(notes)}]".replace("`", "")


def model_options(command: Command) -> Command:
    """How a model is split: shared by run, up and split."""
    return _with_options(
        command,
        stages_option,
        shards_option,
        click.option(
            "--fixed",
            is_flag=True,
            help="Keep this shape: wait for lost workers rather than continue in a smaller one.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
            default="auto",
            show_default=True,
            help="What workers compute in. float32 gives the answers of Transformers in float32. "
            "auto: float32, and bfloat16 for bfloat16 weights if all workers are GPUs. int8: "
            "float32, but activations are rounded to int8 for products with q8 and q4 weights, "
            "which are faster then. Weights stay bfloat16 or float16 in memory where the "
            "checkpoint has them so.",
        ),
        click.option(
            "--weights",
            type=click.Choice(["bf16", "q8", "q4"]),
            help="Quantise the matrices to 8 or 4 bits, or round them to bfloat16, while they are "
            "staged.  [default: as the checkpoint has them]",
        ),
        click.option(
            "--keep-embeddings",
            is_flag=True,
            help="Leave embedding and head as the checkpoint has them, whatever --weights says.",
        ),
        click.option(
            "--kv-dtype",
            type=click.Choice(["float32", "bfloat16", "q8"]),
            help="What keys and values are kept in: of float32, bfloat16 is half the memory and q8 "
            "a quarter; answers then differ slightly.  [default: what workers compute in]",
        ),
        EXPERTS,
        click.option(
            "--chord-span",
            type=click.Choice(["layer", "stage", "auto"]),
            default="auto",
            show_default=True,
            help="Layers that one Celery chord covers: one, a whole stage, or as many as keep the "
            "cost of chords small.",
        ),
        *SLOTS,
    )


def slot_options(command: Command) -> Command:
    """The size of the KV cache."""
    return _with_options(command, *SLOTS)


def answer_options(command: Command) -> Command:
    """A prompt and how it is answered: shared by run and generate."""
    return _with_options(
        command,
        click.argument("prompt"),
        *(request_option(option) for option in (*OPTIONS, *ARGUMENTS) if option.flag),
        *STRUCTURED_FLAGS,
        click.option("--raw", is_flag=True, help="Continue PROMPT without the chat template."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object at the end, no stream."
        ),
    )


def _with_options(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):  # decorators apply from the last to the first
        command = option(command)
    return command


def shape_of(options: dict[str, Any]) -> dict[str, Any]:
    names = (
        "stages",
        "shards",
        "fixed",
        "dtype",
        "kv_dtype",
        "weights",
        "keep_embeddings",
        "experts",
    )
    return {name: options.pop(name) for name in (*names, "chord_span", "num_slots", "slot_tokens")}


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are set on the command line."""
    options = dict(options)
    structured = structured_outputs(options)
    return structured | {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None and value != ()
    }


def read_prompt(prompt: str) -> str:
    """The prompt; `-` stands for standard input, without the newline at its end.

    Raises:
        BadRequest: standard input is too long, or is no UTF-8.
    """
    if prompt != "-":
        return prompt
    content = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(content) > MAX_PROMPT_BYTES:
        raise BadRequest(f"prompt: more than {MAX_PROMPT_BYTES} bytes on standard input")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"prompt: standard input is not UTF-8: {error}") from None
    return text.removesuffix("\n").removesuffix("\r")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that clean-up runs."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def told_to_end() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set from now on."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
