"""The package as its users see it: names, types, and what a wheel holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import skynet

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
# A user's module; `mypy --strict` must know every type in it.
USER = """
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import skynet
from skynet import Client, Completion, Generation, SkynetError, submit_prompt, submit_prompts
from skynet.errors import BadRequest
from skynet.request.record import Token

assert_type(submit_prompt("Hello", max_tokens=5, timeout=3), Generation)
assert_type(submit_prompt("Hello", n=2), list[Generation])
assert_type(submit_prompts(["a", [1, 2]], priority=3), list[Generation])
generation = Client("redis://other").generation("id")
assert_type(generation, Generation)
assert_type(generation.get(timeout=3), Completion)
assert_type(generation.get().text, str)
assert_type(generation.completion, Completion | None)
assert_type(generation.cancel(), bool)
assert_type(skynet.__version__, str)
text: Iterator[str] = generation.stream()
tokens: AsyncIterator[Token] = generation.atokens()
error: SkynetError = BadRequest("no")


async def main() -> Completion:
    async with submit_prompt([1]) as other:
        assert_type(other, Generation)
        async for piece in other.stream():
            assert_type(piece, str)
        async for token in other.tokens():
            assert_type(token, Token)
        assert_type(await other.aget(timeout=1.5), Completion)
        assert_type(await other.acancel(), bool)
        return await asyncio.wait_for(other, 5)


generation.get(timeout="30")  # type: ignore[arg-type]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """A wheel of this checkout."""
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("skynet", "tasks"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    run([sys.executable, "-c", BUILD, str(out)], checkout)
    (path,) = out.glob("*.whl")
    return ZipFile(path)


def run(command: list[str], directory: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lazy_names_are_listed() -> None:
    assert set(skynet.__all__) <= set(dir(skynet))
    assert "__version__" in dir(skynet)
    for name in skynet.__all__:
        assert getattr(skynet, name) is not None


def test_a_wheel_has_one_package_with_its_types(wheel: ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"skynet"}
    assert "skynet/py.typed" in names
    assert {"skynet/client/client.py", "skynet/tasks/shard.py"} <= set(names)
    page = ROOT / "skynet" / "web" / "static"
    files = {f"skynet/web/static/{path.relative_to(page)}" for path in page.rglob("*.*")}
    assert files <= set(names)


@pytest.mark.timeout(300)
def test_mypy_strict_knows_the_types_of_the_public_names(wheel: ZipFile, tmp_path: Path) -> None:
    # Given the wheel, installed without what it needs, so that mypy has little to read
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    wheel.extractall(packages)
    # When a user's module is checked / Then all of its types are known
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    python = str(environment / "bin" / "python")
    options = ["--strict", "--python-executable", python, "--cache-dir", "cache"]
    run([sys.executable, "-m", "mypy", *options, "user.py"], tmp_path)
