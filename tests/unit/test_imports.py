"""Imports point one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up: a module imports what stands before it, never what stands after.
LAYERS = (
    "errors",
    "settings",
    "names",
    "task_names",
    "wire",
    "step",
    "planning.ranges",
    "models",
    "planning",
    "chat_template",
    "languages",
    "sentence_pieces",
    "spaces",
    "text",
    "layers",
    "derived",
    "shard",
    "store",
    "generation_config",
    "options",
    "reading",
    "prompts",
    "chords",
    "worker",
    "engine",
    "backend",
    "celery",
    "completion",
    "served",
    "client",
    "stager",
    "check",
    "splitting",
    "status",
    "guardian",
    "local",
    "bench",
    "terminal",
    "cli",
)
# What else a package must not import: it would be doing another's work.
FORBIDDEN = {
    "skynet": {"tasks", "pickle", "dill", "cloudpickle", "joblib"},
    "skynet.planning": {"torch", "numpy", "redis", "celery", "kombu", "transformers"},
    "skynet.models": {"redis", "celery", "kombu"},
    "skynet.layers": {"redis", "celery", "kombu", "transformers"},
    "skynet.derived": {"redis", "celery", "kombu"},
    "skynet.shard": {"redis", "celery", "kombu", "transformers"},
    "skynet.store": {"torch", "celery", "kombu", "transformers"},
    "skynet.engine": {"torch", "transformers"},
    "skynet.worker": {"transformers"},
    "skynet.text": {"transformers", "torch", "redis"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for path in sorted((ROOT / "skynet").rglob("*.py"))}


def imports_of(module: str) -> Iterator[str]:
    """Modules that a module imports at run time: type checkers may look anywhere."""
    yield from _imports(ast.parse(SOURCES[module].read_text()))


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            for alias in child.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in SOURCES else base
        yield from _imports(child)


def layer_of(module: str) -> str:
    """The longest name of `LAYERS` that the module is, or lies in."""
    inner = module.removeprefix("skynet.")
    fits = [layer for layer in LAYERS if inner == layer or inner.startswith(f"{layer}.")]
    assert fits, f"{module} has no place in LAYERS: give it one"
    return max(fits, key=len)


def test_every_module_is_found_and_every_layer_has_modules() -> None:
    # Given a test that reads nothing would pass
    found = {layer_of(module) for module in SOURCES if module != "skynet"}
    # Then
    assert found == set(LAYERS)


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "skynet"])
def test_no_import_points_up(module: str) -> None:
    own = LAYERS.index(layer_of(module))
    for imported in imports_of(module):
        if imported == "skynet":  # the version; the package's own names are lazy
            assert module == "skynet.cli.root"
        elif imported.split(".")[0] == "skynet":
            other = LAYERS.index(layer_of(imported))
            assert other <= own, f"{module} imports {imported}, which stands above it"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_does_the_work_of_another(package: str) -> None:
    members = [name for name in SOURCES if name == package or name.startswith(f"{package}.")]
    assert members
    for module in members:
        tops = {imported.split(".")[0] for imported in imports_of(module)}
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
        ("skynet.client", {"torch", "transformers"}),
        ("skynet.splitting", {"torch", "transformers", "celery"}),
        ("skynet.engine.runtime", {"torch", "transformers"}),
        ("skynet.worker.runtime", {"torch", "transformers"}),
        ("tasks", {"torch", "transformers"}),
        ("skynet.layers.shard_model", {"transformers", "redis", "celery"}),
        ("skynet.worker.slice", {"transformers"}),
        ("skynet.derived.opening", {"torch", "transformers"}),
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
