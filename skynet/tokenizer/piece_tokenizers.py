"""Tokenizers that Transformers runs on SentencePiece itself, as files for `Text`.

Marian and M2M100 split a text with a SentencePiece model and look the pieces' ids up in a
vocab.json. Staged files:
    source.spm: splits prompts. target.spm: splits texts within an answer; absent: source.spm.
    tokenizer.json: pieces and ids of answers, the decoder, special tokens of a prompt. It does
        not split: its model is a list of words.
    source_vocabulary.json: pieces and ids of prompts, if they differ from those of answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models

from skynet.errors import CheckpointError, UnsupportedModel
from skynet.tokenizer.language_codes import FRAMES, M2M100, WMT21, template
from skynet.tokenizer.sentencepiece_file import (
    BPE,
    UNIGRAM,
    Kind,
    SentencePieceModel,
    read_sentencepiece,
)
from skynet.tokenizer.tokenizer_config import TokenizerConfig, read_file, read_object

SOURCE, TARGET = "source.spm", "target.spm"
SOURCE_VOCABULARY = "source_vocabulary.json"
MARIAN_NAMES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
M2M100_NAMES = {"bos_token": "<s>", "sep_token": "</s>", **MARIAN_NAMES}


def marian_files(config: TokenizerConfig) -> dict[str, bytes]:
    """The files of a MarianTokenizer: source.spm, target.spm, vocab.json, target_vocab.json.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedModel: a kind of SentencePiece model that is not supported.
    """
    path = config.path
    vocabulary = _vocabulary(path / "vocab.json")
    (source, source_content), (target, target_content) = _spm(path / SOURCE), _spm(path / TARGET)
    files = {SOURCE: source_content, TARGET: target_content}
    separate = bool(config.values.get("separate_vocabs"))
    if separate:
        files[SOURCE_VOCABULARY] = json.dumps(vocabulary, ensure_ascii=False).encode()
        vocabulary = _vocabulary(path / "target_vocab.json")
    names = {**MARIAN_NAMES, **config.special_tokens}
    # With a common vocabulary, Transformers decodes with the source model.
    tokenizer = _tokenizer(vocabulary, names, config, target if separate else source)
    codes = [token for token in vocabulary if token.startswith(">>") and token.endswith("<<")]
    tokenizer.add_tokens([AddedToken(code, normalized=False) for code in codes])
    tokenizer.post_processor = template([], [names["eos_token"]], tokenizer.token_to_id)
    return {**files, "tokenizer.json": tokenizer.to_str().encode()}


def m2m100_files(config: TokenizerConfig) -> dict[str, bytes]:
    """The files of an M2M100Tokenizer: sentencepiece.bpe.model, vocab.json.

    Raises: as `marian_files`.
    """
    path = config.path
    model, content = _spm(path / "sentencepiece.bpe.model")
    vocabulary = _vocabulary(path / "vocab.json")
    codes = WMT21 if config.values.get("language_codes") == "wmt21" else M2M100
    first = len(vocabulary)
    languages = {f"__{code}__": first + number for number, code in enumerate(codes)}
    names = {**M2M100_NAMES, **config.special_tokens}
    tokenizer = _tokenizer({**vocabulary, **languages}, names, config, model)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in languages])
    before, after = FRAMES["M2M100Tokenizer"].around(config)
    tokenizer.post_processor = template(before, after, tokenizer.token_to_id)
    return {SOURCE: content, "tokenizer.json": tokenizer.to_str().encode()}


def _tokenizer(
    vocabulary: dict[str, int],
    names: dict[str, str],
    config: TokenizerConfig,
    model: SentencePieceModel,
) -> Tokenizer:
    if names["unk_token"] not in vocabulary:
        raise CheckpointError(
            f"{config.path}: unk_token {names['unk_token']!r} is not in the vocabulary; "
            "download tokenizer_config.json and vocab.json again"
        )
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            *([decoders.ByteFallback()] if model.texts(Kind.BYTE) else []),
            decoders.Fuse(),
            decoders.Replace(Regex(r"\A\s+|\s+\z"), ""),
        ]
    )
    special = dict.fromkeys(names.values(), True)
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=is_special)
            for token, is_special in {**config.more_tokens(), **special}.items()
        ]
    )
    return tokenizer


def _spm(file: Path) -> tuple[SentencePieceModel, bytes]:
    """A supported model, and its file's content."""
    model = read_sentencepiece(file)
    is_bpe = model.model_type == BPE
    unsupported = [
        (model.model_type not in (UNIGRAM, BPE), f"model_type {model.model_type}"),
        (model.space_at_the_end, "treat_whitespace_as_suffix"),
        (is_bpe and model.texts(Kind.USER_DEFINED), "BPE with user-defined pieces"),
    ]
    for is_set, setting in unsupported:
        if is_set:
            raise UnsupportedModel(f"{file}: {setting} is not supported")
    return model, read_file(file)


def _vocabulary(file: Path) -> dict[str, int]:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, and the tokenizer needs it; download it")
    vocabulary: dict[str, Any] = read_object(file)
    if not all(type(number) is int for number in vocabulary.values()):
        raise CheckpointError(f"{file} holds ids that are not integers; download it again")
    return vocabulary
