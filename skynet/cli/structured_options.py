"""Flags of structured output: `structured_outputs` of a request, from files and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from skynet.errors import BadRequest

MAX_FILE_BYTES = 2**16 + 1  # more than a request may have
FLAGS = (
    click.option(
        "--json-schema",
        metavar="FILE|TEXT",
        help="Answer with JSON of this JSON schema.",
    ),
    click.option("--regex", help="Answer with a text that this regular expression matches."),
    click.option("--choice", multiple=True, help="Answer with one of these texts.  [repeatable]"),
    click.option(
        "--grammar",
        metavar="FILE",
        help="Answer with a text of this grammar, in llguidance's Lark or in GBNF.",
    ),
)


def structured_outputs(options: dict[str, Any]) -> dict[str, Any]:
    """{"structured_outputs": ...} of the flags, which are taken out of `options`; {} without any.

    Raises:
        BadRequest: more than one of them is given, or a file cannot be read.
    """
    given = {
        flag: value
        for flag in ("json_schema", "regex", "choice", "grammar")
        if (value := options.pop(flag, None))
    }
    if len(given) > 1:
        names = " and ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise BadRequest(f"{names}: give one of them")
    for flag, value in given.items():
        if flag == "json_schema":
            is_text = value.lstrip().startswith("{")
            return {"structured_outputs": {"json": value if is_text else _read(flag, value)}}
        if flag == "grammar":
            return {"structured_outputs": {"grammar": _read(flag, value)}}
        return {"structured_outputs": {flag: list(value) if flag == "choice" else value}}
    return {}


def _read(flag: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadRequest(f"--{flag.replace('_', '-')} {path!r:.200}: {reason}") from None
