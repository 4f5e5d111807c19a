"""Directories in the cache that are made once, and are complete where they exist."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from skynet.errors import CheckpointError


def made_once(target: Path, make: Callable[[Path], None], what: str) -> None:
    """Make the directory `target` with `make`, which fills an empty one, unless it exists.

    It is moved into place when complete, under a lock: processes that start together make it once,
    and a killed one leaves no complete-looking directory.

    Raises:
        CheckpointError: it cannot be written; names it as `what`.
    """
    if target.is_dir():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if not target.is_dir():
                _make(target, make)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {what} to {target.parent}: {error}; "
            "set SKYNET_CACHE_DIR to a directory with room"
        ) from error


def _make(target: Path, make: Callable[[Path], None]) -> None:
    # A fixed name, since the lock is held: remains of a killed process are removed.
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        make(partial)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
