"""A copy of a quantised checkpoint with plain numbers, for programs that read no other.

What answers are compared with: the model that the codes and scales define.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from skynet.architecture.config import ABSENT
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.formats.mxfp4 import BLOCKS, SCALES
from skynet.checkpoint.formats.split import write_model
from skynet.checkpoint.made_once import made_once

OTHER_FILES = (".safetensors", ".index.json", ".gguf")  # of weights


def unpacked_directory(checkpoint: Checkpoint, cache_dir: Path) -> Path:
    """The checkpoint's directory, or if it is quantised, that of a copy in float32.

    The copy is made at the first call and stays in the cache: 4 bytes for each weight.

    Raises:
        CheckpointError: a failed read or write.
    """
    if not checkpoint.quantised:
        return checkpoint.path
    target = cache_dir / "models" / f"{checkpoint.digest()[:16]}-unpacked"

    def make(directory: Path) -> None:
        for file in checkpoint.path.iterdir():
            if file.is_file() and not file.name.endswith(OTHER_FILES):
                shutil.copy(file, directory)
        config = {name: value for name, value in checkpoint.config.items() if name != ABSENT}
        (directory / "config.json").write_text(json.dumps(config, indent=2))
        write_model(_tensors(checkpoint), directory)

    made_once(target, make, f"the unpacked {checkpoint.name}")
    return target


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """All tensors but those that quantised matrices consist of."""
    for name in checkpoint.tensors:
        if name in checkpoint.packed:
            continue
        stem = name.rpartition(".")[0]
        packed = name.removesuffix(BLOCKS).removesuffix(SCALES)
        matrices = {stem, f"{stem}.weight", packed} - {name}
        is_part = not matrices.isdisjoint(checkpoint.quantised) and not name.endswith(".bias")
        if name in checkpoint.quantised or not is_part:
            yield name, checkpoint.read_whole(name)
