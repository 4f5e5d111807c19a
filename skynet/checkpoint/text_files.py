"""The tokenizer side of a model directory, as the few files every process needs of it.

Transformers is imported for directories in forms that are not read here only.
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

# Any of these is a tokenizer in an older form, from which a tokenizer.json may be made.
VOCABULARY_FILES = (
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
# Tokenizers that no tokenizer.json stands for; one that lies beside them is not theirs.
PIECE_TOKENIZERS = {
    "MarianTokenizer": ("source.spm", marian_files),
    "M2M100Tokenizer": ("sentencepiece.bpe.model", m2m100_files),
}

logger = logging.getLogger(__name__)


def text_files(path: Path) -> dict[str, bytes]:
    """File name -> content; a file that the model has no use for is absent.

    tokenizer.json: made where the directory has an older form only. One that cannot be made is
        left out with a warning: the model is usable by token ids.
    source.spm, target.spm, source_vocabulary.json: see `piece_tokenizers`.
    chat_template.jinja: from the file of that name, or else from tokenizer_config.json.
    decoding.json: {"clean_up_tokenization_spaces": true} for tokenizers that want it.
    special_tokens.json: {"bos_token": "<s>", ...} as chat templates see them.
    generation_config.json: as it is.
    embedding.json: see `sentence_files.embedding_json`.

    Raises:
        CheckpointError: a file that cannot be read, or is damaged.
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
            "%s is staged without a tokenizer, so that its prompts are token ids: %s",
            config.path,
            error,
        )
        return {}


def _convert(config: TokenizerConfig) -> dict[str, bytes]:
    path = config.path
    name, convert = PIECE_TOKENIZERS.get(config.class_name, ("vocab.json", None))
    whole = (path / TOKENIZER).is_file()
    if convert and ((path / name).is_file() or (not whole and (path / "vocab.json").is_file())):
        return convert(config)
    if whole:
        return {TOKENIZER: with_frame(read_file(path / TOKENIZER), config)}
    made = unigram_tokenizer(config) or _by_transformers(path)
    return {TOKENIZER: made.encode()} if made else {}


def _by_transformers(path: Path) -> str | None:
    older = [name for name in VOCABULARY_FILES if (path / name).is_file()]
    if not older:
        return None
    read_object(path / "vocab.json")  # a damaged one is the checkpoint's fault, not the converter's
    from transformers import AutoTokenizer

    try:
        made: str = AutoTokenizer.from_pretrained(str(path)).backend_tokenizer.to_str()
    except Exception as error:  # a converter per tokenizer class, each with errors of its own
        needs = " (pip install sentencepiece protobuf)" if older[0].endswith(".model") else ""
        raise UnsupportedModel(
            f"it has no {TOKENIZER}, and Transformers makes none from {older[0]}{needs}: {error}; "
            "add one with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        ) from error
    return made


def _cleans_up(config: TokenizerConfig, tokenizer: bytes) -> bool:
    """Whether answers lose spaces before punctuation: not those of BPE, whatever the file says."""
    if config.values.get(CLEAN_UP) is not True:
        return False
    try:
        return "merges" not in json.loads(tokenizer)["model"]
    except (KeyError, TypeError, ValueError):  # whoever loads it says what is wrong
        return False


def _chat_template(path: Path, config: Any) -> bytes | None:
    if (path / CHAT_TEMPLATE).is_file():
        return read_file(path / CHAT_TEMPLATE)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template.encode() if isinstance(template, str) else None
