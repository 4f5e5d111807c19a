"""The tokenizer side of a model directory, as the few files every process needs of it.

Transformers is imported for directories without a tokenizer.json only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skynet.errors import CheckpointError
from skynet.models.sentence_files import EMBEDDING, embedding_json

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS = "special_tokens.json"
GENERATION_CONFIG = "generation_config.json"

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Any of these is a tokenizer in an older form, from which Transformers can make a tokenizer.json.
VOCABULARY_FILES = (
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def text_files(path: Path) -> dict[str, bytes]:
    """File name -> content; a file that the model has no use for is absent.

    tokenizer.json: made with Transformers where the directory has an older form only.
    chat_template.jinja: from the file of that name, or else from tokenizer_config.json.
    special_tokens.json: {"bos_token": "<s>", ...} as chat templates see them.
    generation_config.json: as it is.
    embedding.json: see `sentence_files.embedding_json`.

    Raises:
        CheckpointError: a file that cannot be read, or a tokenizer that cannot be converted.
    """
    files: dict[str, bytes] = {}
    config = _read_object(path / "tokenizer_config.json")
    tokenizer = _tokenizer_json(path)
    if tokenizer is not None:
        files[TOKENIZER] = tokenizer
        files[SPECIAL_TOKENS] = json.dumps(_special_tokens(path, config)).encode()
    template = _chat_template(path, config)
    if template is not None:
        files[CHAT_TEMPLATE] = template
    if (path / GENERATION_CONFIG).is_file():
        files[GENERATION_CONFIG] = _read(path / GENERATION_CONFIG)
    embedding = embedding_json(path)
    if embedding is not None:
        files[EMBEDDING] = embedding
    return files


def _tokenizer_json(path: Path) -> bytes | None:
    if (path / TOKENIZER).is_file():
        return _read(path / TOKENIZER)
    older = [name for name in VOCABULARY_FILES if (path / name).is_file()]
    if not older:
        return None
    from transformers import AutoTokenizer

    try:
        backend: str = AutoTokenizer.from_pretrained(str(path)).backend_tokenizer.to_str()
    except Exception as error:  # a converter per tokenizer class, each with errors of its own
        raise CheckpointError(
            f"{path} has no {TOKENIZER}, and none could be made from {older[0]}: {error}; "
            "add one with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        ) from error
    return backend.encode()


def _special_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    merged = {**_read_object(path / "special_tokens_map.json"), **config}
    for name in SPECIAL_NAMES:
        token = merged.get(name)
        if isinstance(token, dict):  # an AddedToken, written out
            token = token.get("content")
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def _chat_template(path: Path, config: dict[str, Any]) -> bytes | None:
    if (path / CHAT_TEMPLATE).is_file():
        return _read(path / CHAT_TEMPLATE)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template.encode() if isinstance(template, str) else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(_read(file))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, expected an object")
    return content
