"""Digests of big files, remembered: hashing gigabytes again for a file that did not change is
what makes a second start slow. Knows nothing of what is in the files.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path


def cached_digest(
    kind: str, files: Iterable[Path], cache_dir: Path, compute: Callable[[], str]
) -> str:
    """`compute()`, or what it returned the last time for the same files.

    The same: path, size and modification time in nanoseconds of each. `kind` names what is
    computed, and how: another kind is another entry.
    """
    key = hashlib.sha256(kind.encode())
    for file in sorted(files):
        status = file.stat()
        key.update(f"\0{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    entry = cache_dir / "digests" / key.hexdigest()
    with suppress(OSError):
        remembered = entry.read_text()
        if len(remembered) == 64:
            return remembered
    digest = compute()
    with suppress(OSError):  # a cache directory nobody can write to costs time, not the answer
        _write_atomically(entry, digest)
    return digest


def file_digest(file: Path, cache_dir: Path) -> str:
    """sha256 of one file's bytes, as hex."""

    def compute() -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return cached_digest("file", [file], cache_dir, compute)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    os.replace(partial, path)
