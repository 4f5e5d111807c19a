"""The process that fuzzes: by atheris, else by mutation. Reports lines of JSON on its output.

Imports everything once, since that takes seconds with atheris, and forks for each target.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    from tests.fuzz import guard
    from tests.fuzz.mutation import mutate, mutate_json
    from tests.fuzz.targets import BY_NAME

    atheris = None
else:
    with atheris.instrument_imports(include=["skynet"]):
        from tests.fuzz import guard
        from tests.fuzz.mutation import mutate, mutate_json
        from tests.fuzz.targets import BY_NAME

MAX_LENGTH = 16 * 1024
TIMEOUT_S = 20  # of one input
REPORT_S = 1.0


class Session:
    """Runs the inputs of one target, and saves the first one of each place that fails."""

    def __init__(self, name: str, directory: Path, seconds: float) -> None:
        self.target = BY_NAME[name]
        self.directory = directory
        self.until = time.monotonic() + seconds
        self.num_inputs = 0
        self.places: set[str] = set()
        self._reported = 0.0

    def __call__(self, data: bytes) -> None:
        self.num_inputs += 1
        finding = guard.run(self.target, data)
        if finding is not None and finding.where not in self.places:
            self.places.add(finding.where)
            file = finding.save(self.directory)
            say(finding=finding.where, trace=finding.trace, file=str(file))
        now = time.monotonic()
        if now - self._reported > REPORT_S:
            self._reported = now
            say(inputs=self.num_inputs, left_s=max(0.0, self.until - now))


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def main(directory: Path, seconds: float, names: list[str]) -> None:
    """Fuzz one target after the other, each in a process of its own."""
    logging.disable()
    for name in names:
        say(target=name)
        pid = os.fork()
        if not pid:
            log = os.open(directory / f"{name}.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, sys.stderr.fileno())
            guard.limit_memory()
            session = Session(name, directory, seconds)
            (_by_mutation if atheris is None else _by_atheris)(session, seconds)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        say(ended=os.waitstatus_to_exitcode(status))


def _by_atheris(session: Session, seconds: float) -> None:
    """Does not return."""
    name, directory = session.target.name, session.directory
    corpus = directory / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(session.target.inputs()):
        (corpus / f"seed-{number}").write_bytes(data)
    options = {
        "max_total_time": int(seconds),
        "max_len": MAX_LENGTH,
        "timeout": TIMEOUT_S,
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{directory}/{name}-",
    }
    flags = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup(["fuzz", str(corpus), *flags], session, custom_mutator=_mutator)
    atheris.Fuzz()


def _mutator(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time a value of the JSON in the input is changed."""
    changed = mutate_json(data, seed) if seed % 2 else None
    if changed is not None and len(changed) <= max_size:
        return changed
    mutated: bytes = atheris.Mutate(data, max_size)
    return mutated


def _by_mutation(session: Session, _: float) -> None:
    chance = random.Random()
    inputs = session.target.inputs()
    while time.monotonic() < session.until:
        session(mutate(chance.choice(inputs), inputs, chance)[:MAX_LENGTH])


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
