"""The text files of a model directory that every process needs: tokenizer, templates, defaults.

Imports Transformers only for tokenizers in forms that this package does not read.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from skynet.checkpoint.pooling_config import EMBEDDING, embedding_json
from skynet.errors import UnsupportedModel
from skynet.tokenizer.language_codes import with_frame
from skynet.tokenizer.piece_tokenizers import m2m100_files, marian_files
from skynet.tokenizer.tokenizer_config import (
    TokenizerConfig,
    read_file,
    read_object,
    read_tokenizer_config,
)
from skynet.tokenizer.unigram_tokenizers import unigram_tokenizer

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS = "special_tokens.json"
GENERATION_CONFIG = "generation_config.json"
DECODING = "decoding.json"
CLEAN_UP = "clean_up_tokenization_spaces"

# Tokenizers in older forms, which may be converted to a tokenizer.json.
VOCABULARY_FILES = (
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
# Tokenizers that a tokenizer.json cannot express; one in the same directory is ignored.
PIECE_TOKENIZERS = {
    "MarianTokenizer": ("source.spm", marian_files),
    "M2M100Tokenizer": ("sentencepiece.bpe.model", m2m100_files),
}

logger = logging.getLogger(__name__)


def text_files(path: Path) -> dict[str, bytes]:
    """File name -> content; a file that the model does not need is absent.

    tokenizer.json: converted if the directory holds an older form only. If that fails it is left
        out with a warning: prompts are token ids then.
    source.spm, target.spm, source_vocabulary.json: see `piece_tokenizers`.
    chat_template.jinja: the file, or the field of tokenizer_config.json.
    decoding.json: {"clean_up_tokenization_spaces": true} for tokenizers with that setting.
    special_tokens.json: {"bos_token": "<s>", ...}, for chat templates.
    generation_config.json: unchanged.
    embedding.json: see `pooling_config.embedding_json`.

    Raises:
        CheckpointError: a file cannot be read, or is damaged.
    """
    config = read_tokenizer_config(path)
    files = _tokenizer_files(config)
    if files:
        files[SPECIAL_TOKENS] = json.dumps(config.special_tokens).encode()
        if _cleans_up(config, files[TOKENIZER]):
            files[DECODING] = json.dumps({CLEAN_UP: True}).encode()
    template = _chat_template(path, config.values)
    if template is not None:
        files[CHAT_TEMPLATE] = template
    if (path / GENERATION_CONFIG).is_file():
        read_object(path / GENERATION_CONFIG)  # reports damage
        files[GENERATION_CONFIG] = read_file(path / GENERATION_CONFIG)
    embedding = embedding_json(path)
    if embedding is not None:
        files[EMBEDDING] = embedding
    return files


def _tokenizer_files(config: TokenizerConfig) -> dict[str, bytes]:
    try:
        return _convert(config)
    except UnsupportedModel as error:
        logger.warning(
            "%s is staged without a tokenizer, its prompts must be token ids: %s",
            config.path,
            error,
        )
        return {}


def _convert(config: TokenizerConfig) -> dict[str, bytes]:
    path = config.path
    name, convert = PIECE_TOKENIZERS.get(config.class_name, ("vocab.json", None))
    has_tokenizer_json = (path / TOKENIZER).is_file()
    if convert and (
        (path / name).is_file() or (not has_tokenizer_json and (path / "vocab.json").is_file())
    ):
        return convert(config)
    if has_tokenizer_json:
        return {TOKENIZER: with_frame(read_file(path / TOKENIZER), config)}
    converted = unigram_tokenizer(config) or _by_transformers(path)
    return {TOKENIZER: converted.encode()} if converted else {}


def _by_transformers(path: Path) -> str | None:
    older = [name for name in VOCABULARY_FILES if (path / name).is_file()]
    if not older:
        return None
    read_object(path / "vocab.json")  # reports damage as the checkpoint's, not the converter's
    from transformers import AutoTokenizer

    try:
        converted: str = AutoTokenizer.from_pretrained(str(path)).backend_tokenizer.to_str()
    except Exception as error:  # each tokenizer class's converter raises other errors
        needs = " (pip install sentencepiece protobuf)" if older[0].endswith(".model") else ""
        raise UnsupportedModel(
            f"it has no {TOKENIZER}, and Transformers cannot convert {older[0]}{needs}: "
            f"{error}; "
            "add one with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        ) from error
    return converted


def _cleans_up(config: TokenizerConfig, tokenizer: bytes) -> bool:
    """Whether answers lose spaces before punctuation; never with BPE, as in Transformers."""
    if config.values.get(CLEAN_UP) is not True:
        return False
    try:
        return "merges" not in json.loads(tokenizer)["model"]
    except (KeyError, TypeError, ValueError):  # `Text` reports the error
        return False


def _chat_template(path: Path, config: Any) -> bytes | None:
    if (path / CHAT_TEMPLATE).is_file():
        return read_file(path / CHAT_TEMPLATE)
    template = config.get("chat_template")
    if isinstance(template, list):  # of several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template.encode() if isinstance(template, str) else None
