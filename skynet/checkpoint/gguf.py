"""Converts a GGUF file once to a Hugging Face directory; matrices stay as small as they are.

Transformers makes the config and the tokenizer; `gguf_rope` adds the rope's scaling, and
`gguf_tensors` reads the weights. Those of models that it does not know Transformers unpacks.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from rich.console import Console

from skynet.checkpoint.digests import file_digest
from skynet.checkpoint.formats.split import write_model
from skynet.checkpoint.formats.table import warn_of_rounding
from skynet.checkpoint.gguf_rope import add_rope_scaling
from skynet.checkpoint.gguf_tensors import GgufTensors
from skynet.checkpoint.made_once import made_once
from skynet.errors import CheckpointError, SkynetError
from skynet.models.registry import KNOWN, load_architecture

MAGIC = b"GGUF"
# Version of the conversion. 4: unpacked matrices stay in the file's 16-bit dtype.
CONVERSION = 4


def convert_gguf(file: Path, cache_dir: Path) -> Path:
    """The directory of the converted model; converts at the first call.

    Named after the digest of the file.

    Raises:
        CheckpointError: not a GGUF file, or Transformers cannot read its model or tokenizer.
    """
    target = _target(file, cache_dir)

    def make(directory: Path) -> None:
        try:
            _convert(file, directory)
        except (OSError, SkynetError):
            raise
        except Exception as error:  # each architecture's converter raises other errors
            raise CheckpointError(f"cannot convert {file}: {error}") from error

    made_once(target, make, f"the converted {file.name}")
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
    return config


def _target(file: Path, cache_dir: Path) -> Path:
    """The directory of the converted model.

    Raises:
        CheckpointError: not a GGUF file.
    """
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{file} is not a GGUF file: it does not start with {MAGIC!r}")
    return cache_dir / "models" / f"{file_digest(file, cache_dir)[:16]}-{CONVERSION}"


def _convert(file: Path, directory: Path) -> None:
    with _status(f"Converting {file.name} (once)"), _quiet():
        config = _write_config(file, directory)
        tensors = GgufTensors(file)
        if not tensors.is_kept or config.get("model_type") not in KNOWN:
            _write_unpacked(file, directory, tensors.dtype)
            return
        write_model(tensors.read(load_architecture(config)), directory)
    warn_of_rounding(tensors.rounded)


def _write_config(file: Path, directory: Path) -> dict[str, Any]:
    """Write the tokenizer and the config that Transformers makes of the file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(directory)
    with torch.device("meta"):  # without weights, for the class and the generation config
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**where))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    add_rope_scaling(config, file)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return config


def _write_unpacked(file: Path, directory: Path, dtype: str) -> None:
    """Write the weights as Transformers unpacks them: matrices in `dtype`, if that loses nothing.

    All else is float32.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # Without this, recent releases compute on quantised weights and cannot save them.
    gguf_config = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}
    config = (directory / "config.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, **unpack)
    narrow: torch.dtype = getattr(torch, dtype)
    for parameter in model.parameters():
        stored = parameter.data.to(narrow)
        if parameter.ndim > 1 and torch.equal(stored.float(), parameter.data):
            parameter.data = stored
    model.save_pretrained(directory)
    (directory / "config.json").write_bytes(config)  # with the rope's scaling


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
