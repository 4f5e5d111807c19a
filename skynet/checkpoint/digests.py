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
    entry = cache_dir / "digests" / files_key(kind, files)
    with suppress(OSError):
        cached = entry.read_text()
        if len(cached) == 64:
            return cached
    digest = compute()
    with suppress(OSError):  # without a writable cache directory the next call computes it again
        write_atomically(entry, digest.encode())
    return digest


def files_key(kind: str, files: Iterable[Path]) -> str:
    """The name of a cache entry for these files as they are now; see `cached_digest`."""
    key = hashlib.sha256(kind.encode())
    for file in sorted(files):
        status = file.stat()
        key.update(f"\0{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return key.hexdigest()


def file_digest(file: Path, cache_dir: Path) -> str:
    """sha256 of one file's bytes, as hex."""

    def compute() -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return cached_digest("file", [file], cache_dir, compute)


def write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    os.replace(partial, path)
