"""Real clients of the gateway, each in an environment of its own: their packages conflict.

`make clients` makes what is missing, within a time limit. What cannot be installed has its reason
in a file, and its test is skipped with it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(os.environ.get("CLIENT_ENVIRONMENTS", ".venv-clients")).absolute()
LIMIT_S = float(os.environ.get("CLIENTS_LIMIT_S", "600"))  # for all of them
ONE_LIMIT_S = 240.0
PIP = ("-m", "pip", "--python")
# Not compiled: each environment runs one script, which imports a small part of what is installed.
PIP_OPTIONS = (
    "--no-input",
    "--disable-pip-version-check",
    "--quiet",
    "--prefer-binary",
    "--no-compile",
)
NPM_OPTIONS = ("--no-audit", "--no-fund", "--silent", "--ignore-scripts")


@dataclass(frozen=True)
class Environment:
    """name: of the client. packages: with their versions. is_npm: of npm, else of pip.
    is_small: installed in seconds.
    """

    name: str
    packages: tuple[str, ...]
    is_npm: bool = False
    is_small: bool = True

    @property
    def directory(self) -> Path:
        return ROOT / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def is_there(self) -> bool:
        """Whether exactly these packages are installed."""
        return _read(self.directory / ".done") == self._wanted

    @property
    def problem(self) -> str:
        """Why it is not there."""
        reason = _read(ROOT / f"{self.name}.failed") or "run `make clients`"
        return f"{self.name} is not installed: {reason}"

    @property
    def _wanted(self) -> str:
        return " ".join(self.packages)

    def install(self, limit_s: float) -> str:
        """Install it anew: "", or why that failed."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        try:
            for command in self._commands():
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=limit_s,
                    check=False,
                    cwd=self.directory,
                )
                if done.returncode:
                    lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
                    return f"{command[0]} ended with {done.returncode}: {lines[-1][:300]}"
        except subprocess.TimeoutExpired:
            return f"not installed after {limit_s:.0f} s"
        except OSError as error:
            return str(error)
        (self.directory / ".done").write_text(self._wanted)
        return ""

    def _commands(self) -> list[list[str]]:
        if self.is_npm:
            return [["npm", "install", *NPM_OPTIONS, "--prefix", ".", *self.packages]]
        return [
            [sys.executable, "-m", "venv", "--without-pip", "."],
            [sys.executable, *PIP, str(self.python), "install", *PIP_OPTIONS, *self.packages],
        ]


# In the order of their value: what comes last is left out first if time is short.
ENVIRONMENTS = {
    each.name: each
    for each in (
        Environment("lm-eval", ("lm-eval[api]==0.4.13",), is_small=False),
        Environment("anthropic", ("anthropic==2.10.0",)),
        Environment("langchain-openai", ("langchain-openai==1.7.4",)),
        Environment("instructor", ("instructor==1.17.0",)),
        Environment("pydantic-ai", ("pydantic-ai-slim[openai]==2.68.0",)),
        Environment("llm", ("llm==0.36",)),
        Environment("openai-npm", ("openai@7.55.0",), is_npm=True),
        Environment(
            "ai-sdk",
            ("ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "zod@4"),
            is_npm=True,
        ),
        Environment("llama-index", ("llama-index-llms-openai-like==0.8.1",), is_small=False),
        Environment("litellm", ("litellm==1.110.2",), is_small=False),
    )
}


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def main() -> None:
    """Install what is missing, one after the other, and say how long each took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--small", action="store_true", help="only those that take seconds")
    only_small = parser.parse_args().small
    give_up = time.monotonic() + LIMIT_S
    ROOT.mkdir(parents=True, exist_ok=True)
    for name, environment in ENVIRONMENTS.items():
        failed = ROOT / f"{name}.failed"
        if environment.is_there or (only_small and not environment.is_small):
            continue
        left, started = give_up - time.monotonic(), time.monotonic()
        problem = environment.install(min(ONE_LIMIT_S, left)) if left > 1 else "no time is left"
        if problem:
            failed.write_text(problem)
        else:
            failed.unlink(missing_ok=True)
        result = problem or "installed"
        print(f"==> {name}: {result} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
