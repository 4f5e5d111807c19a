"""GGUF files: converted once to a Hugging Face directory in bfloat16, then used as one.

Knows nothing of quantised arithmetic: Transformers unpacks the blocks and maps the names.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from skynet.checkpoint.digests import file_digest
from skynet.errors import CheckpointError

MAGIC = b"GGUF"


def convert_gguf(file: Path, cache_dir: Path) -> Path:
    """The directory of the converted model; converts if nobody has.

    Named after the file's content, moved into place when complete, under a lock: processes that
    start together convert once, and one that is killed leaves nothing that looks finished.

    Raises:
        CheckpointError: not a GGUF file, or a model or tokenizer Transformers cannot read.
    """
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{file} is no GGUF file: it does not start with {MAGIC!r}")
    models = cache_dir / "models"
    target = models / file_digest(file, cache_dir)[:16]
    if target.is_dir():
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{target.name}.lock"):
            if not target.is_dir():
                _convert_into(file, target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the converted {file.name} to {models}: {error}; "
            "set SKYNET_CACHE_DIR to a directory with room"
        ) from error
    return target


def _convert_into(file: Path, target: Path) -> None:
    # One name, since the lock is held: what a killed conversion left is found and removed.
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _convert(file, partial)
        os.replace(partial, target)
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # a converter per architecture, each with errors of its own
        raise CheckpointError(f"cannot convert {file}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(file: Path, directory: Path) -> None:
    with _status(f"Converting {file.name} (once)"):
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        # Releases that compute on packed blocks do so unless told to unpack, and then cannot save.
        gguf_config = getattr(transformers, "GgufConfig", None)
        unpack = {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, **unpack)
            tokenizer.save_pretrained(directory)
            model.save_pretrained(directory)


@contextmanager
def _status(message: str) -> Iterator[None]:
    console = Console(file=sys.stderr)  # bound now: `_quiet` redirects stderr
    if not console.is_terminal:
        console.print(f"{message} ...", soft_wrap=True)
        yield
        return
    with console.status(f"{message} ..."):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from Transformers; its errors are exceptions anyway."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
