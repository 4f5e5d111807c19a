"""A model directory's tokenizer settings: class, special tokens, language codes.

Read from tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json, in the
forms that several versions of Transformers wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skynet.errors import CheckpointError

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# model_type -> class, for directories that do not name it.
CLASSES = {
    "m2m_100": "M2M100Tokenizer",
    "marian": "MarianTokenizer",
    "mbart": "MBartTokenizer",
    "mt5": "T5Tokenizer",
    "pegasus": "PegasusTokenizer",
    "t5": "T5Tokenizer",
}


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer settings of one directory."""

    path: Path
    class_name: str  # Transformers' name without "Fast"; "" if unknown
    values: Mapping[str, Any]  # tokenizer_config.json over special_tokens_map.json

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens by role: {"bos_token": "<s>", ...}."""
        tokens = ((name, token_text(self.values.get(name))) for name in SPECIAL_NAMES)
        return {name: token for name, token in tokens if token}

    def more_tokens(self) -> dict[str, bool]:
        """Added tokens without a role -> whether each is special; in the order of their ids."""
        added_tokens: dict[str, bool] = {}
        for name in ("additional_special_tokens", "extra_special_tokens"):
            tokens = self.values.get(name)
            for token in tokens if isinstance(tokens, list) else ():
                added_tokens[token_text(token)] = True
        added = read_object(self.path / "added_tokens.json")
        for token in sorted(added, key=lambda text: int(added[text])):
            added_tokens.setdefault(token, False)
        decoder = self.values.get("added_tokens_decoder")
        for _, token in sorted(decoder.items(), key=_id) if isinstance(decoder, dict) else ():
            added_tokens[token_text(token)] = bool(token.get("special"))
        added_tokens.pop("", None)
        return added_tokens


def read_tokenizer_config(path: Path) -> TokenizerConfig:
    """The tokenizer settings in a model directory.

    Raises:
        CheckpointError: a file is not a JSON object; names it.
    """
    values = read_object(path / "tokenizer_config.json")
    config = read_object(path / "config.json")
    named = values.get("tokenizer_class") or config.get("tokenizer_class")
    class_name = named or CLASSES.get(str(config.get("model_type")), "")
    merged = {**read_object(path / "special_tokens_map.json"), **values}
    return TokenizerConfig(path, str(class_name).removesuffix("Fast"), merged)


def token_text(token: Any) -> str:
    """The text of a token, which these files hold as text or as an AddedToken; "" for none."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def read_file(file: Path) -> bytes:
    """The content of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty without the file.

    Raises:
        CheckpointError: it cannot be read or is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(read_file(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, expected an object")
    return content


def _id(entry: tuple[str, Any]) -> int:
    return int(entry[0])
