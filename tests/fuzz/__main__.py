"""Fuzzes SkyNet's readers of foreign bytes: `make fuzz`, or `python -m tests.fuzz --help`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.fuzz import guard
from tests.fuzz.targets import BY_NAME, TARGETS

TAIL_LINES = 15  # of libFuzzer's output, if it ends a process


@click.command()
@click.option("--seconds", default=120, show_default=True, help="For all targets together.")
@click.option(
    "--target", "names", multiple=True, type=click.Choice(list(BY_NAME)), help="Only this one."
)
@click.option("--findings", type=click.Path(path_type=Path), help="Folder for inputs that fail.")
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run one saved input, whose name begins with its target.",
)
def main(seconds: int, names: tuple[str, ...], findings: Path | None, replay: Path | None) -> None:
    """Feed mutated inputs to every reader. Exit code 1 if any raises an error not of SkyNet's."""
    console = Console(highlight=False)
    if replay is not None:
        _replay(console, replay)
        return
    how = "atheris" if find_spec("atheris") else "mutation only: atheris is not installed"
    directory = findings or Path(tempfile.mkdtemp(prefix="skynet-fuzz-"))
    directory.mkdir(parents=True, exist_ok=True)
    wanted = list(names) or [target.name for target in TARGETS]
    each = max(1, seconds // len(wanted))
    console.print(f"{len(wanted)} targets, {each} s each, by {how}; findings in {directory}")
    found = _fuzz(console, directory, each, wanted)
    if found:
        console.print(f"[red]{found} findings[/red]: python -m tests.fuzz --replay FILE")
        sys.exit(1)
    console.print("no findings")


def _replay(console: Console, file: Path) -> None:
    name = max((n for n in BY_NAME if file.name.startswith(f"{n}-")), key=len, default="")
    if not name:
        raise click.BadParameter(f"{file.name} does not begin with a target: {', '.join(BY_NAME)}")
    guard.limit_memory()
    finding = guard.run(BY_NAME[name], file.read_bytes())
    console.print(finding.trace if finding else f"{name}: no finding", markup=False)
    sys.exit(bool(finding))


class Progress:
    """What the fuzzing process reports, on the terminal."""

    def __init__(self, console: Console, directory: Path) -> None:
        self.console = console
        self.directory = directory
        self.num_findings = 0
        self.status = console.status("importing")
        self._name = ""
        self._inputs = 0
        self._started = 0.0

    def take(self, report: dict[str, Any]) -> None:
        """One line of the process."""
        if "target" in report:
            self._name, self._inputs, self._started = report["target"], 0, time.monotonic()
        elif "finding" in report:
            self.num_findings += 1
            self.console.print(f"[red]{self._name}: {report['finding']}[/red]: {report['file']}")
            self.console.print(report["trace"], markup=False)
        elif "inputs" in report:
            self._inputs = report["inputs"]
            self.status.update(f"{self._line()}, {report['left_s']:.0f} s left")
        else:
            self._end(report["ended"])

    def _line(self) -> str:
        rate = self._inputs / max(1.0, time.monotonic() - self._started)
        return f"{self._name}: {self._inputs} inputs, {rate:.0f}/s, {self.num_findings} findings"

    def _end(self, code: int) -> None:
        if code:  # a time-out, or too much memory; libFuzzer has saved the input
            self.num_findings += 1
            log = (self.directory / f"{self._name}.log").read_text(errors="replace")
            self.console.print(f"[red]{self._name}: ended with code {code}[/red]")
            self.console.print("\n".join(log.splitlines()[-TAIL_LINES:]), markup=False)
        self.console.print(self._line())


def _fuzz(console: Console, directory: Path, seconds: int, names: list[str]) -> int:
    """Fuzz these targets; the number of findings."""
    command = [sys.executable, "-m", "tests.fuzz.child", str(directory), str(seconds), *names]
    progress = Progress(console, directory)
    log = (directory / "imports.log").open("wb")
    with (
        log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as child,
        progress.status,
    ):
        for line in child.stdout or ():
            try:
                report = json.loads(line)
            except ValueError:
                continue  # of a library
            progress.take(report)
    if child.returncode:
        raise click.ClickException(
            f"the fuzzing process ended with code {child.returncode}: see {directory}/imports.log"
        )
    return progress.num_findings


if __name__ == "__main__":
    main()
