"""Builds a tokenizer.json for families whose checkpoints hold a unigram SentencePiece model only.

mT5, T5 1.1, Pegasus and mBART-50 have no tokenizer.json. Transformers builds one with the packages
sentencepiece and protobuf; this module needs neither. Ids are those of the models' training:
Transformers 5 counts one mask token of Pegasus too few if tokenizer_config.json does not name both,
and drops the normalisation of mBART.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from skynet.errors import UnsupportedModel
from skynet.tokenizer.language_codes import FRAMES, MBART, MBART50, template
from skynet.tokenizer.sentencepiece_file import (
    UNIGRAM,
    Kind,
    SentencePieceModel,
    read_sentencepiece,
)
from skynet.tokenizer.tokenizer_config import TokenizerConfig

Vocabulary = list[tuple[str, float]]
FILES = ("spiece.model", "sentencepiece.bpe.model")
NAMES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Family:
    """Settings of a family's tokenizer that are not in its SentencePiece model."""

    # The model's pieces and the tokens before and after them, which are special.
    vocabulary: Callable[[SentencePieceModel, TokenizerConfig], Vocabulary]
    split_words: bool = False  # at white space, before "▁" is put before each word
    newline_is_space: bool = False  # if the model has no normalisation rules


def unigram_tokenizer(config: TokenizerConfig) -> str | None:
    """The tokenizer.json; None for another family or without the SentencePiece model.

    Raises:
        CheckpointError: the model is damaged.
        UnsupportedModel: it is not a unigram model.
    """
    family = FAMILIES.get(config.class_name)
    file = next((config.path / name for name in FILES if (config.path / name).is_file()), None)
    if family is None or file is None:
        return None
    return _build(file, family, config).to_str()


def _build(file: Path, family: Family, config: TokenizerConfig) -> Tokenizer:
    model = read_sentencepiece(file)
    if model.model_type != UNIGRAM:
        raise UnsupportedModel(f"{file}: expected a unigram model, got type {model.model_type}")
    names = {**NAMES, **config.special_tokens}
    vocabulary = family.vocabulary(model, config)
    unknown = next((n for n, (text, _) in enumerate(vocabulary) if text == names["unk_token"]), 0)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unknown))
    tokenizer.normalizer = _normalizer(model, family)
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    steps = [pre_tokenizers.WhitespaceSplit(), metaspace]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if family.split_words else metaspace
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_tokens(_added_tokens(model, vocabulary, config, names))
    frame = FRAMES.get(config.class_name)
    before, after = frame.around(config) if frame else ([], [names["eos_token"]])
    tokenizer.post_processor = template(before, after, tokenizer.token_to_id)
    return tokenizer


def _normalizer(model: SentencePieceModel, family: Family) -> normalizers.Normalizer | None:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    elif family.newline_is_space:
        steps.append(normalizers.Replace("\n", " "))
    if not family.split_words:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    return normalizers.Sequence(steps) if steps else None


def _added_tokens(
    model: SentencePieceModel,
    vocabulary: Vocabulary,
    config: TokenizerConfig,
    names: dict[str, str],
) -> list[AddedToken]:
    pieces = {piece.text for piece in model.pieces}
    around = [text for text, _ in vocabulary if text not in pieces]
    tokens = {
        **dict.fromkeys(model.texts(Kind.USER_DEFINED), False),
        **config.more_tokens(),
        **dict.fromkeys([*model.texts(Kind.CONTROL), *around, *names.values()], True),
    }
    # In families with language codes the mask token absorbs the space before it.
    mask = names.get("mask_token", "<mask>") if config.class_name in FRAMES else ""
    return [
        AddedToken(token, normalized=False, special=special, lstrip=token == mask)
        for token, special in tokens.items()
    ]


def _pieces(model: SentencePieceModel, start: int) -> Vocabulary:
    return [(piece.text, piece.score) for piece in model.pieces[start:]]


def _number(config: TokenizerConfig, name: str, default: int) -> int:
    value = config.values.get(name)
    return value if isinstance(value, int) else default


def _t5(model: SentencePieceModel, config: TokenizerConfig) -> Vocabulary:
    """<extra_id_99> down to <extra_id_0> have the last ids."""
    count = _number(config, "extra_ids", 100)
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in range(count - 1, -1, -1)]
    return [*_pieces(model, 0), *sentinels]


def _pegasus(model: SentencePieceModel, config: TokenizerConfig) -> Vocabulary:
    """103 ids before the model's pieces; <pad> and </s> keep their ids."""
    offset = _number(config, "offset", 103)
    head = [(token, 0.0) for token in ("<pad>", "</s>", "<mask_1>", "<mask_2>")]
    unused = [(f"<unk_{number}>", -100.0) for number in range(2, offset)]
    return [*head, *unused, *_pieces(model, 2)]


def _mbart(codes: tuple[str, ...]) -> Callable[[SentencePieceModel, TokenizerConfig], Vocabulary]:
    """Fairseq's order: four tokens replace the model's first three; codes and <mask> are last."""

    def vocabulary(model: SentencePieceModel, config: TokenizerConfig) -> Vocabulary:
        head = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        tail = [(token, 0.0) for token in (*codes, "<mask>")]
        return [*head, *_pieces(model, 3), *tail]

    return vocabulary


FAMILIES = {
    "MBart50Tokenizer": Family(_mbart(MBART50)),
    "MBartTokenizer": Family(_mbart(MBART), split_words=True),
    "PegasusTokenizer": Family(_pegasus, newline_is_space=True),
    "T5Tokenizer": Family(_t5, split_words=True),
}
