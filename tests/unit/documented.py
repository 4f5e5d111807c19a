"""Command lines as documents and docker-compose.yml show them, and whether they exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import flower.options  # noqa: F401  (defines Flower's options)
from celery.bin.celery import celery
from tornado.options import options as flower_options

from skynet.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
GUIDE = [ROOT / "README.md", *PAGES]  # what a user reads
DOCUMENTS = [*GUIDE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
PROGRAMS = ("skynet", "celery")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def table_rows(text: str, name: str) -> list[list[str]]:
    """Cells of the table that follows `<!-- name -->`, without its head."""
    table = text.partition(f"<!-- {name} -->\n")[2].partition("\n\n")[0]
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def code_blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, without the indentation of a list they stand in."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def all_commands(*paths: Path) -> list[list[str]]:
    """Every command of the project that these documents show, in blocks and in running text."""
    texts = [read(path) for path in paths]
    return [words for text in texts for words in (*block_commands(text), *inline_commands(text))]


def block_commands(text: str) -> list[list[str]]:
    """Every command of the project in a block of shell, as words."""
    lines = [line for block in code_blocks(text, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := command_of(line))]


def inline_commands(text: str) -> list[list[str]]:
    """Every command of the project in running text, as words; arguments may be placeholders."""
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    commands = [command_of(span.replace("\n", " ")) for span in spans]
    return [words for words in commands if len(words) > 1]


def command_of(line: str) -> list[str]:
    """The words of a command of the project; nothing if the line is none."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose with an apostrophe
        return []
    while words and ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    if words[:3] == ["docker", "compose", "exec"]:
        words = words[4:]
    return words if words and words[0] in PROGRAMS else []


def check_command(words: list[str], strict: bool = True) -> None:
    """Raise unless program, subcommand and options exist.

    strict: arguments must be there and have values that are allowed; else they may be names.
    """
    program, *rest = words
    if program == "celery":
        _check_celery(rest)
        return
    words = _parse(main, rest)
    if not words:
        return
    name, *rest = words
    command = main.commands.get(name)
    if command is None:
        raise click.UsageError(f"skynet has no command {name!r}")
    if isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        command = command.commands.get(name)
        if command is None:
            raise click.UsageError(f"skynet {words[0]} has no command {name!r}")
    if strict:
        command.make_context(name, rest)
    else:
        _parse(command, rest)


def _check_celery(rest: list[str]) -> None:
    if rest[:2] != ["-A", "skynet"]:
        raise click.UsageError(f"celery {rest}: expected -A skynet first")
    command = celery.commands.get(rest[2])
    if command is None:
        raise click.UsageError(f"celery has no command {rest[2]!r}")
    if rest[2] != "flower":
        _parse(command, rest[3:])
        return
    for word in rest[3:]:
        name = word.removeprefix("--").partition("=")[0]
        if not word.startswith("--") or name not in flower_options:
            raise click.UsageError(f"flower has no option {word!r}")


def _parse(command: click.Command, words: list[str]) -> list[str]:
    """Arguments that are left when the options, which must exist, are taken off."""
    context = click.Context(command, **command.context_settings)
    context.allow_interspersed_args = command.allow_interspersed_args
    return command.make_parser(context).parse_args(args=list(words))[1]


def shape(words: list[str]) -> tuple[str, ...]:
    """A command without its values: program, subcommand, options, and the kind of its queue."""
    kept = [word.partition("=")[0] for word in words if word.startswith("-")]
    named = [word for word in words[1:] if word in (*main.commands, "worker", "flower", "skynet")]
    queues = [re.sub(r"\d+", "N", words[words.index("-Q") + 1])] if "-Q" in words else []
    return (words[0], *named, *sorted(kept), *queues)
