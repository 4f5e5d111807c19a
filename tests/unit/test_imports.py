"""Imports point one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The floor plan, from the ground up: a room imports rooms that stand before it, never one after,
# imports for type checkers included. CONTRIBUTING.md has the same list, with what each room is for.
FLOOR_PLAN = (
    "errors",
    "redis_url",
    "tracing",
    "settings_sources",
    "settings",
    "wire",
    "architecture",
    "planning",
    "models",
    "tokenizer",
    "request",
    "checkpoint",
    "kernels",
    "layers",
    "reference",
    "transformers_backend",
    "engine",
    "store",
    "exchange",
    "chords",
    "worker",
    "orchestrator",
    "celery",
    "tasks",
    "client",
    "check",
    "staging",
    "local",
    "web",
    "gateway",
    "bench",
    "cli",
)
# What else a package must not import: it would be doing another's work.
FORBIDDEN = {
    "skynet": {"tasks", "celeryconfig", "pickle", "dill", "cloudpickle", "joblib"},
    "skynet.architecture": {"torch", "redis", "celery", "kombu", "transformers"},
    "skynet.planning": {"torch", "numpy", "redis", "celery", "kombu", "transformers"},
    "skynet.models": {"torch", "redis", "celery", "kombu", "transformers"},
    "skynet.tokenizer": {"transformers", "torch", "redis", "celery", "kombu"},
    "skynet.request": {"torch", "redis", "celery", "kombu", "transformers"},
    "skynet.checkpoint": {"redis", "celery", "kombu"},
    "skynet.layers": {"redis", "celery", "kombu", "transformers"},
    "skynet.reference": {"redis", "celery", "kombu"},
    "skynet.transformers_backend": {"redis", "celery", "kombu"},
    "skynet.engine": {"torch", "redis", "celery", "kombu", "transformers", "skynet.store"},
    "skynet.store": {"torch", "celery", "kombu", "transformers"},
    "skynet.exchange": {"torch", "celery", "kombu", "transformers"},
    "skynet.chords": {"torch", "transformers"},
    "skynet.worker": {"transformers"},
    "skynet.orchestrator": {"torch", "transformers"},
    "skynet.gateway": {"torch", "celery", "kombu"},
    "skynet.check": {"redis", "celery", "kombu"},
    "skynet.staging": {"torch", "transformers", "celery", "kombu", "skynet.check"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for path in sorted((ROOT / "skynet").rglob("*.py"))}


@cache
def imports_of(module: str) -> tuple[str, ...]:
    """Modules that a module imports, those for type checkers included."""
    return tuple(_imports_of(module))


def _imports_of(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in SOURCES else base


def room_of(module: str) -> str:
    """The entry of `FLOOR_PLAN` that a module is, or lies in."""
    room = module.removeprefix("skynet.").split(".")[0]
    assert room in FLOOR_PLAN, f"{module} has no place in FLOOR_PLAN: give it one"
    return room


def test_every_module_has_a_room_and_every_room_has_modules() -> None:
    # Given a test that reads nothing would pass
    rooms = {room_of(module) for module in SOURCES if module != "skynet"}
    # Then
    assert rooms == set(FLOOR_PLAN)


def test_only_these_modules_are_loose() -> None:
    loose = {path.stem for path in (ROOT / "skynet").glob("*.py")}
    loose_modules = {
        "__init__",
        "celery",
        "errors",
        "redis_url",
        "settings",
        "settings_sources",
        "tracing",
    }
    assert loose == loose_modules


def test_contributing_has_the_same_floor_plan() -> None:
    # Given
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Layout")[2].partition("\n## ")[0]
    # When
    rooms = re.findall(r"^\| `skynet/([a-z_]+)(?:/|\.py)` \|", table, re.MULTILINE)
    # Then
    assert tuple(rooms) == FLOOR_PLAN


def test_no_modules_import_each_other_in_a_circle() -> None:
    # Given
    needed = {module: set(imports_of(module)) & SOURCES.keys() - {module} for module in SOURCES}
    del needed["skynet"]  # whose names are lazy
    # When: modules that import none of those left, or that none of those left imports, are dropped
    # until nothing changes
    while needed:
        imported = set().union(*needed.values())
        free = {m for m in needed if m not in imported or not needed[m] & needed.keys()}
        if not free:
            break
        needed = {m: others - free for m, others in needed.items() if m not in free}
    # Then
    assert not needed, f"import circles among {sorted(needed)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "skynet"])
def test_no_import_points_up(module: str) -> None:
    level = FLOOR_PLAN.index(room_of(module))
    for imported in imports_of(module):
        if imported == "skynet":  # the version; the package's other names are lazy
            assert room_of(module) in ("cli", "gateway")
        elif imported.split(".")[0] == "skynet":
            below = FLOOR_PLAN.index(room_of(imported)) <= level
            assert below, f"{module} imports {imported}, which stands above it"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_does_the_work_of_another(package: str) -> None:
    members = [name for name in SOURCES if name == package or name.startswith(f"{package}.")]
    assert members
    for module in members:
        imported = set(imports_of(module))
        tops = {".".join(name.split(".")[:depth]) for name in imported for depth in (1, 2)}
        assert not tops & FORBIDDEN[package], f"{module} imports {tops & FORBIDDEN[package]}"


def test_no_module_imports_relatively() -> None:
    for module, path in SOURCES.items():
        nodes = ast.walk(ast.parse(path.read_text()))
        relative = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, f"{module} has a relative import"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("skynet", {"celery", "kombu", "redis", "numpy", "torch", "transformers", "pydantic"}),
        ("skynet.cli", {"celery", "kombu", "redis", "numpy", "torch", "transformers"}),
        ("skynet.client.client", {"torch", "transformers"}),
        ("skynet.staging.split", {"torch", "transformers", "celery"}),
        ("skynet.orchestrator.runtime", {"torch", "transformers"}),
        ("skynet.worker.runtime", {"torch", "transformers"}),
        ("skynet.tasks", {"torch", "transformers"}),
        ("skynet.layers.shard_model", {"transformers", "redis", "celery"}),
        ("skynet.worker.slice", {"transformers"}),
        ("skynet.check", {"redis", "celery", "kombu"}),
        ("skynet.transformers_backend.opening", {"torch", "transformers"}),
        ("skynet.gateway.parsing.response_format", {"torch", "redis", "celery"}),
    ],
)
def test_light_modules_load_nothing_heavy(module: str, heavy: set[str]) -> None:
    # Given a fresh interpreter
    code = f"import sys, {module}; print(*set({sorted(heavy)!r}) & sys.modules.keys())"
    # When
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    # Then
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
