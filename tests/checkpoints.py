"""Tiny random checkpoints on disk, with a tokenizer of one letter a token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from skynet.tokenizer.staged_tokenizer import FILE, StagedTokenizer
from skynet.tokenizer.text import Text

VOCAB = 131
FIRST_LETTER = 0x4E00  # token n is the letter n after this one


@dataclass(frozen=True)
class Tiny:
    """A checkpoint, some prompts, and the greedy tokens that Transformers answers them with."""

    path: Path
    prompts: list[list[int]]
    tokens: list[list[int]]


def letters(ids: list[int]) -> str:
    """The text of these tokens."""
    return "".join(chr(FIRST_LETTER + token) for token in ids)


def make_tiny(directory: Path, family: str = "llama", **fields: Any) -> Tiny:
    """A model of 4 layers with 6 query heads, of a Llama in 3 KV groups, and some other fields."""
    from references import PROMPTS, make_reference

    model = make_reference(family, fields, directory)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    save_tokenizer(directory, chat_template=template)
    return Tiny(directory, PROMPTS, model.tokens)


def save_tokenizer(directory: Path, **config: str | list[str]) -> None:
    """One letter a token; `config` goes into tokenizer_config.json."""
    vocabulary = {letters([token]): token for token in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=letters([0])))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    # llguidance knows tokens as bytes by this decoder; Fuse alone it does not know.
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))


def staged_text(tokenizer: Tokenizer, **fields: Any) -> Text:
    """A model's text files with this tokenizer; `fields` of its staged form."""
    staged = StagedTokenizer(backend=tokenizer.to_str(), **fields)
    return Text({FILE: staged.to_json()})
