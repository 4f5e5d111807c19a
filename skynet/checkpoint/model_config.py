"""The config.json of a model whose weights need not be on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skynet.checkpoint.checkpoint import HUB_ID, read_config, unreachable
from skynet.checkpoint.demo import DEMO_MODEL, DEMO_NAMES, demo_checkpoint_path
from skynet.checkpoint.gguf import gguf_config
from skynet.checkpoint.minilm import MINILM_MODEL, MINILM_NAMES, minilm_path
from skynet.errors import CheckpointError


def model_config(model: str, cache_dir: Path) -> tuple[str, dict[str, Any]]:
    """(name, parsed config.json) of the model that `model` names, as for `open_checkpoint`.

    A directory needs a config.json only, and of a hub model no other file is downloaded. The config
    of a GGUF file that was never converted is read by Transformers, which takes a while.

    Raises:
        CheckpointError: missing or unreadable; names the file and what to do.
    """
    if model.lower() in DEMO_NAMES:
        return DEMO_MODEL, gguf_config(demo_checkpoint_path(), cache_dir)
    if model.lower() in MINILM_NAMES:
        return MINILM_MODEL, read_config(minilm_path(cache_dir))
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve().name, read_config(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path.stem, gguf_config(path, cache_dir)
    if path.is_file() or path.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"{path} is neither a directory nor a .gguf file; name a directory with a config.json, "
            "a .gguf file, a hub id such as Qwen/Qwen3-0.6B, or smollm2"
        )
    return model, read_config(_downloaded(model).parent)


def _downloaded(hub_id: str) -> Path:
    """The config.json of a hub model: of the cache, or downloaded."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except Exception as error:  # errors of the hub client's transport included
        raise unreachable(hub_id, error) from error
