"""The text files of a model directory that every process needs: tokenizer, defaults, embeddings."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from skynet.checkpoint.digests import files_key, write_atomically
from skynet.checkpoint.pooling_config import EMBEDDING, embedding_json
from skynet.checkpoint.transformers_tokenizer import tokenizer_files
from skynet.errors import CheckpointError, WireError
from skynet.tokenizer.staged_tokenizer import FORMAT, read_staged_tokenizer
from skynet.wire import codec

GENERATION_CONFIG = "generation_config.json"


def text_files(
    path: Path, cache_dir: Path | None = None, reranks: bool = False
) -> dict[str, bytes]:
    """File name -> content; a file that the model does not need is absent.

    cache_dir: for the tokenizer; to load it takes seconds, most of them to import Transformers.
    reranks: the model is a decoder that ranks: see `skynet.request.reranker`.

    skynet_tokenizer.json, source.spm, target.spm: see `skynet.tokenizer.staged_tokenizer`.
    generation_config.json: unchanged.
    embedding.json: see `pooling_config.embedding_json`.

    Raises:
        CheckpointError: a file cannot be read, or is damaged.
        UnsupportedModel: the tokenizer is code of the checkpoint.
    """
    files = tokenizer_files(path) if cache_dir is None else _cached_tokenizer(path, cache_dir)
    if (path / GENERATION_CONFIG).is_file():
        files[GENERATION_CONFIG] = _read_object(path / GENERATION_CONFIG)
    staged = read_staged_tokenizer(files)
    embedding = embedding_json(path, None if staged is None else staged.model_max_length)
    if reranks:
        settings = {} if embedding is None else json.loads(embedding)
        embedding = json.dumps({**settings, "reranker": True}, sort_keys=True).encode()
    if embedding is not None:
        files[EMBEDDING] = embedding
    return files


@cache
def libraries() -> str:
    """What decides the staged form of a tokenizer beside its files."""
    names = ("transformers", "tokenizers")
    return f"form {FORMAT}, " + ", ".join(f"{name} {version(name)}" for name in names)


def _cached_tokenizer(path: Path, cache_dir: Path) -> dict[str, bytes]:
    read = [file for file in path.iterdir() if file.is_file() and file.suffix != ".safetensors"]
    read += path.glob("*/*.jinja")  # further chat templates
    entry = cache_dir / "tokenizers" / files_key(libraries(), read)
    with suppress(OSError, WireError):
        cached: dict[str, bytes] = codec.decode(entry.read_bytes())
        return cached
    files = tokenizer_files(path)
    if files:  # else the warning is due again
        with suppress(OSError):
            write_atomically(entry, codec.encode(files))
    return files


def _read_object(file: Path) -> bytes:
    """The content of a file that holds a JSON object."""
    try:
        content = file.read_bytes()
        value = json.loads(content)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}, expected an object")
    return content
