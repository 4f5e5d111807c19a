"""Converts a GGUF file once to a Hugging Face directory in bfloat16.

Transformers dequantises the weights and maps their names; `gguf_rope` adds the rope's scaling.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from skynet.checkpoint.digests import file_digest
from skynet.checkpoint.gguf_rope import add_rope_scaling
from skynet.errors import CheckpointError

MAGIC = b"GGUF"
# Version of the conversion. 2: with the scaling of the rope.
CONVERSION = 2


def convert_gguf(file: Path, cache_dir: Path) -> Path:
    """The directory of the converted model; converts at the first call.

    Named after the digest of the file, moved into place when complete, under a lock: processes that
    start together convert once, and a killed one leaves no complete-looking directory.

    Raises:
        CheckpointError: not a GGUF file, or Transformers cannot read its model or tokenizer.
    """
    target = _target(file, cache_dir)
    models = target.parent
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


def gguf_config(file: Path, cache_dir: Path) -> dict[str, Any]:
    """The config.json that `convert_gguf` writes, without a conversion.

    Raises:
        CheckpointError: not a GGUF file, or Transformers cannot read its config.
    """
    target = _target(file, cache_dir)
    if target.is_dir():
        config: dict[str, Any] = json.loads((target / "config.json").read_text())
        return config
    with _status(f"Reading {file.name}"):
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        try:
            with _quiet():
                config = dict(load_gguf_checkpoint(str(file), return_tensors=False)["config"])
        except Exception as error:  # each architecture's reader raises other errors
            raise CheckpointError(f"cannot read the config of {file}: {error}") from error
    return {**config, "dtype": "bfloat16"}


def _target(file: Path, cache_dir: Path) -> Path:
    """The directory of the converted model.

    Raises:
        CheckpointError: not a GGUF file.
    """
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{file} is not a GGUF file: it does not start with {MAGIC!r}")
    return cache_dir / "models" / f"{file_digest(file, cache_dir)[:16]}-{CONVERSION}"


def _convert_into(file: Path, target: Path) -> None:
    # A fixed name, since the lock is held: remains of a killed conversion are removed.
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _convert(file, partial)
        os.replace(partial, target)
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # each architecture's converter raises other errors
        raise CheckpointError(f"cannot convert {file}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(file: Path, directory: Path) -> None:
    with _status(f"Converting {file.name} (once)"):
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        # Without this, recent releases compute on quantised weights and cannot save them.
        gguf_config = getattr(transformers, "GgufConfig", None)
        unpack = {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, **unpack)
            tokenizer.save_pretrained(directory)
            model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    add_rope_scaling(config, file)
    (directory / "config.json").write_text(json.dumps(config, indent=2))


@contextmanager
def _status(message: str) -> Iterator[None]:
    console = Console(file=sys.stderr)  # opened now: `_quiet` redirects stderr later
    if not console.is_terminal:
        console.print(f"{message} ...", soft_wrap=True)
        yield
        return
    with console.status(f"{message} ..."):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and warnings of Transformers; errors are exceptions."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
