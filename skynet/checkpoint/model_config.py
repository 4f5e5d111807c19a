"""The config.json of a model whose weights need not be on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from skynet.checkpoint.checkpoint import HUB_ID, read_config, unreachable
from skynet.checkpoint.demo import DEMO_MODEL, DEMO_NAMES, demo_checkpoint_path
from skynet.checkpoint.formats.table import FIELD, published_layout
from skynet.checkpoint.gguf import gguf_config
from skynet.checkpoint.gguf_tensors import GgufTensors
from skynet.checkpoint.minilm import MINILM_MODEL, MINILM_NAMES, minilm_path
from skynet.errors import CheckpointError
from skynet.models.language_model import language_config
from skynet.wire.quantised import Layout


class ModelConfig(NamedTuple):
    """A model's name, its parsed config.json, and the layout of its matrices if quantised."""

    name: str
    config: dict[str, Any]
    layout: Layout | None


def model_config(model: str, cache_dir: Path) -> ModelConfig:
    """The config of the model that `model` names, as for `open_checkpoint`.

    A directory needs a config.json only, and of a hub model no other file is downloaded. The config
    of a GGUF file that was never converted is read by Transformers, which takes a while.

    Raises:
        CheckpointError: missing or unreadable; names the file and what to do.
    """
    if model.lower() in DEMO_NAMES:
        return _of_gguf(DEMO_MODEL, demo_checkpoint_path(), cache_dir)
    if model.lower() in MINILM_NAMES:
        return _of_directory(MINILM_MODEL, minilm_path(cache_dir))
    path = Path(model).expanduser()
    if path.is_dir():
        return _of_directory(path.resolve().name, path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _of_gguf(path.stem, path, cache_dir)
    if path.is_file() or path.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"{path} is neither a directory nor a .gguf file; name a directory with a config.json, "
            "a .gguf file, a hub id such as Qwen/Qwen3-0.6B, or smollm2"
        )
    return _of_directory(model, _downloaded(model).parent)


def _of_directory(name: str, path: Path) -> ModelConfig:
    config = language_config(read_config(path))
    layout = published_layout(config)
    if layout is not None:
        del config[FIELD]  # the rest of the program knows layouts, not formats
    return ModelConfig(name, config, layout)


def _of_gguf(name: str, file: Path, cache_dir: Path) -> ModelConfig:
    tensors = GgufTensors(file)
    config = {**gguf_config(file, cache_dir), "dtype": tensors.dtype}
    return ModelConfig(name, config, tensors.layout)


def _downloaded(hub_id: str) -> Path:
    """The config.json of a hub model: of the cache, or downloaded."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except Exception as error:  # errors of the hub client's transport included
        raise unreachable(hub_id, error) from error
