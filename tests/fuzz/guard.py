"""Runs one input of a target: any error but SkyNet's is a finding, and so is too much memory."""

from __future__ import annotations

import hashlib
import resource
import traceback
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.fuzz.target import Target

MAX_BYTES = 1024 * 2**20  # an input of some KiB must not allocate as much


@dataclass(frozen=True)
class Finding:
    """An input and the error that it raised.

    where: error class and innermost line: findings of the same place are one.
    """

    target: str
    data: bytes
    where: str
    trace: str

    @property
    def name(self) -> str:
        return f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}"

    def save(self, directory: Path) -> Path:
        """Write the input to a file, from which it can be replayed."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / self.name
        file.write_bytes(self.data)
        return file


def limit_memory() -> None:
    """From now on an allocation of MAX_BYTES fails, with a MemoryError, in this process."""
    limit = psutil.Process().memory_info().vms + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run(target: Target, data: bytes) -> Finding | None:
    """Run one input."""
    try:
        target.run(data)
    except target.allowed:
        return None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of a Rust library, a panic is no Exception
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/skynet/" in f.filename]
        place = (ours or [frame])[-1]
        where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        return Finding(target.name, data, where, traceback.format_exc(limit=-4))
    return None
