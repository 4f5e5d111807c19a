"""What the documents say is so: commands, settings, names, files and links."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from documented import (
    DOCUMENTS,
    GUIDE,
    PAGES,
    ROOT,
    all_commands,
    block_commands,
    check_command,
    code_blocks,
    inline_commands,
    read,
    table_rows,
)

from skynet import bench, errors
from skynet.cli import main
from skynet.client import client
from skynet.local import LocalCluster
from skynet.models.registry import KNOWN
from skynet.request import text_tasks
from skynet.request.completion import Completion
from skynet.request.option_table import BY_NAME
from skynet.settings import Settings
from skynet.settings_sources import CONFIG_VARIABLE, variable_of
from skynet.staging.split import skysplit
from skynet.tokenizer.chat_options import CHAT_OPTIONS
from tests.metrics_table import MARKER as METRICS_MARKER
from tests.metrics_table import metrics_table
from tests.models_page import page
from tests.options_table import MARKER, options_table

MAX_README_LINES = 200
README = read(ROOT / "README.md")
STRUCTURE = read(ROOT / "docs" / "structure.md")
PYTHON = read(ROOT / "docs" / "python.md")
SETTINGS = read(ROOT / "docs" / "settings.md")
TASKS = read(ROOT / "docs" / "tasks.md")
PERFORMANCE = read(ROOT / "docs" / "performance.md")
TEXT_TASK_OPTIONS = {option for options in text_tasks.KNOWN.values() for option in options}
CALLS: dict[str, Any] = {
    "submit_prompt": client.submit_prompt,
    "submit_prompts": client.submit_prompt,
    "LocalCluster": LocalCluster,
    "skysplit": skysplit,
}

documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@documents
def test_every_command_shown_exists(path: Path) -> None:
    for words in block_commands(read(path)):
        check_command(words)
    for words in inline_commands(read(path)):
        check_command(words, strict=False)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


def test_the_readme_links_every_page() -> None:
    section = README.partition("## Where to read on")[2]
    assert [page.name for page in PAGES if f"](docs/{page.name})" not in section] == []


def test_the_readme_shows_a_cluster_from_start_to_answer() -> None:
    shown = {tuple(words[:2]) for words in block_commands(README)}
    assert {("skynet", name) for name in ("run", "up", "split", "generate", "status")} <= shown
    assert ["celery", "-A", "skynet", "worker", "-Q", "orchestrator"] in block_commands(README)
    assert ["celery", "-A", "skynet", "worker"] in block_commands(README)


def test_the_guide_shows_every_command_there_is() -> None:
    # Given
    shown = all_commands(*GUIDE)
    shown_commands = {words[1] for words in shown if words[0] == "skynet"}
    celerys = [words for words in shown if words[0] == "celery"]
    # Then
    assert set(main.commands) <= shown_commands
    for name, command in main.commands.items():
        inner = set(command.commands) if isinstance(command, click.Group) else set()
        assert inner <= {words[2] for words in shown if words[:2] == ["skynet", name] and words[2:]}
    assert {words[3] for words in celerys} == {"worker", "flower"}
    assert {"orchestrator", "stage0.shard0", "stage1.shard1"} <= {
        words[words.index("-Q") + 1] for words in celerys if "-Q" in words
    }


@pytest.mark.parametrize(
    "command",
    [
        "skynet ask hello",
        "skynet run hello --sharts 2",
        "skynet run",
        "skynet split smollm2 --stages S",
        "skynet models drop 3f2a",
        "celery -A skynet flower --adress=127.0.0.1",
        "celery -A skynet worker --queue stage0.shard0 --nope",
        "celery worker",
    ],
)
def test_an_unknown_command_is_detected(command: str) -> None:
    with pytest.raises(click.UsageError):
        check_command(command.split())


@documents
def test_every_make_target_named_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.MULTILINE))
    named = re.findall(r"(?:`|^(?:\w+=\S+ )?)make ([a-z]+)", read(path), re.MULTILINE)
    assert set(named) <= targets


def test_the_settings_table_matches_the_settings() -> None:
    # Given
    rows = [[cell.strip("`") for cell in row] for row in table_rows(SETTINGS, "settings")]
    # When
    expected = [
        [f"SKYNET_{name.upper()}", shown(field.default), field.description]
        for name, field in Settings.model_fields.items()
    ]
    # Then
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    for row, (name, _, description) in zip(rows, expected, strict=True):
        assert description is None or row[2] == description, name


def shown(default: object) -> str:
    """A default as it would stand in the environment."""
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(int(default))
    return "[]" if default == () else str(default)


@documents
def test_every_variable_named_is_a_setting(path: Path) -> None:
    known = {CONFIG_VARIABLE, *map(variable_of, Settings.model_fields)}
    assert set(re.findall(r"\bSKYNET_[A-Z_]+[A-Z]\b", read(path))) <= known


def test_the_readme_names_families() -> None:
    # Given
    section = README.partition("## Models")[2].partition("`skynet check`")[0]
    # Then
    named = set(re.findall(r"`([\w-]+)`", section))
    assert named
    assert named <= set(KNOWN)


def test_the_models_page_matches_the_code() -> None:
    # When / Then: `python -m tests.models_page > docs/models.md` makes it so
    assert read(ROOT / "docs" / "models.md") == page()


def test_the_options_table_matches_the_code() -> None:
    # Given the document that holds it
    (text,) = [read(path) for path in DOCUMENTS if f"{MARKER}\n" in read(path)]
    # When / Then: `python -m tests.options_table` prints it
    assert text.partition(f"{MARKER}\n")[2].partition("\n\n")[0] + "\n" == options_table()


def test_the_metrics_table_matches_the_code() -> None:
    text = read(ROOT / "docs" / "monitoring.md")
    assert text.partition(f"{METRICS_MARKER}\n")[2].startswith(metrics_table() + "\n")


def test_the_table_of_text_task_options_names_those_there_are() -> None:
    # Given
    rows = table_rows(TASKS, "text task options")
    # Then
    assert sorted((row[0].strip("`"), row[1].strip("`")) for row in rows) == sorted(
        (task, option) for task, options in text_tasks.KNOWN.items() for option in options
    )
    assert [row[2] for row in rows if row[1] == "`top_k`"] == [str(text_tasks.DEFAULT_TOP)]


def test_the_table_of_errors_names_those_there_are() -> None:
    # Given
    classes = inspect.getmembers(errors, inspect.isclass)
    # Then
    named = [row[0].strip("`") for row in table_rows(PYTHON, "errors")]
    assert sorted(named) == sorted(name for name, _ in classes)


def test_the_table_of_the_local_cluster_names_its_arguments() -> None:
    # Given
    cells = [row[0] for row in table_rows(PYTHON, "cluster")]
    # Then
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert named == list(inspect.signature(LocalCluster).parameters)


def test_every_member_of_a_generation_that_is_named_exists() -> None:
    # Given
    section = PYTHON.partition("\n## Generation\n")[2].partition("\nA `Completion` has")[0]
    members = re.findall(r"^\| `(\w+)(?:\(.*?\))?` \|", section, re.MULTILINE)
    # Then
    assert {"get", "stream", "tokens", "cancel"} <= set(members)
    assert [name for name in members if not hasattr(client.Generation, name)] == []


def test_every_field_of_a_completion_is_named() -> None:
    # Given
    section = PYTHON.partition("\nA `Completion` has")[2].partition("\n## ")[0]
    first_cells = "".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE))
    # Then
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(Completion.__dataclass_fields__)


def test_the_performance_page_names_every_scenario() -> None:
    assert [name for name in bench._scenarios() if f"`{name}`" not in PERFORMANCE] == []


@documents
def test_python_examples_parse_and_their_names_and_arguments_exist(path: Path) -> None:
    for block in code_blocks(read(path), "python"):
        tree = ast.parse(block)
        for module, name in imported_names(tree):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
        for function, keyword in keywords(tree):
            known = set(inspect.signature(CALLS[function]).parameters)
            known |= {*BY_NAME, *TEXT_TASK_OPTIONS, *CHAT_OPTIONS}
            assert keyword in known, f"{function} has no {keyword}"


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("skynet"):
            yield from ((node.module or "", alias.name) for alias in node.names)


def keywords(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in CALLS:
                yield from ((name, keyword.arg or "") for keyword in node.keywords)


@pytest.mark.parametrize(("text", "least"), [(README, 1), (PYTHON, 3)], ids=["README", "python"])
def test_python_is_shown(text: str, least: int) -> None:
    blocks = code_blocks(text, "python")
    assert len(blocks) >= least
    assert {"submit_prompt", "submit_prompts", "LocalCluster"} <= {
        name for block in blocks for _, name in imported_names(ast.parse(block))
    }


@documents
def test_every_file_named_exists(path: Path) -> None:
    named = re.findall(r"`((?:skynet|tasks|tests|docs)/[\w/.-]*)(?:::[\w.]+)?`", read(path))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_every_function_that_the_structure_names_exists() -> None:
    # Given
    named = re.findall(r"`([\w/]+\.py)::([\w.]+)`", STRUCTURE)
    # Then
    assert len(named) > 40
    missing = [f"{file}::{name}" for file, name in named if name not in defined(ROOT / file)]
    assert missing == []


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file, as `name` and `Class.name`."""
    names = set()
    for node in ast.parse(read(path)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            functions = ast.FunctionDef | ast.AsyncFunctionDef
            members = (m for m in node.body if isinstance(m, functions))
            names |= {f"{node.name}.{member.name}" for member in members}
    return names


def test_the_structure_counts_its_steps() -> None:
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", STRUCTURE, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


@documents
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(path)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file) if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(read(linked)), f"{path.name} links to {target}"


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_changelog_has_this_version() -> None:
    version = importlib.import_module("skynet").__version__
    assert f"## {version}" in read(ROOT / "CHANGELOG.md")
