"""Cached digests of big files: hashing unchanged gigabytes again would make every start slow."""

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
    """`compute()`, or its cached result for the same files.

    Files are the same if their paths, sizes and modification times in nanoseconds are. `kind` names
    the computation; each kind has a cache entry.
    """
    key = hashlib.sha256(kind.encode())
    for file in sorted(files):
        status = file.stat()
        key.update(f"\0{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    entry = cache_dir / "digests" / key.hexdigest()
    with suppress(OSError):
        cached = entry.read_text()
        if len(cached) == 64:
            return cached
    digest = compute()
    with suppress(OSError):  # without a writable cache directory the next call computes it again
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
