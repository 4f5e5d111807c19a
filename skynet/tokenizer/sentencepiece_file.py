"""Reads SentencePiece models (`.spm`, `spiece.model`, ...): pieces, scores, settings.

A model is a protobuf message, `sentencepiece_model.proto` of google/sentencepiece, simple enough to
read without that library and without protobuf. Does not split texts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from skynet.errors import CheckpointError
from skynet.tokenizer.charsmap import Charsmap


class Kind(IntEnum):
    """The type of a piece: `SentencePiece.Type` of the format."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # <s>, </s>: never matched in a text
    USER_DEFINED = 4  # never split
    UNUSED = 5
    BYTE = 6


UNIGRAM, BPE = 1, 2  # of `TrainerSpec.ModelType`
PIECES = 1
# Field of a message in the file -> the message's fields that are read.
SETTINGS = {
    2: {3: "model_type", 24: "space_at_the_end", 35: "byte_fallback", 40: "unknown_id"},
    3: {
        2: "charsmap",
        3: "add_dummy_prefix",
        4: "remove_extra_whitespaces",
        5: "escape_whitespaces",
    },
}


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; "▁" in its text is a space."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A model's pieces and settings; the defaults are the format's."""

    pieces: tuple[Piece, ...]
    model_type: int = UNIGRAM
    unknown_id: int = 0
    byte_fallback: bool = False
    space_at_the_end: bool = False  # `treat_whitespace_as_suffix`
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    def texts(self, *kinds: Kind) -> list[str]:
        return [piece.text for piece in self.pieces if piece.kind in kinds]


def read_sentencepiece(file: Path) -> SentencePieceModel:
    """The model in a file.

    Raises:
        CheckpointError: unreadable, truncated, or not a SentencePiece model.
    """
    try:
        return parse_sentencepiece(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{file} is truncated or not a SentencePiece model: {error}; download it again"
        ) from error


def parse_sentencepiece(content: bytes) -> SentencePieceModel:
    """The model in a file's bytes.

    Raises:
        ValueError: they are not a SentencePiece model.
    """
    pieces: list[Piece] = []
    settings: dict[str, int | bytes] = {}
    missing = {PIECES, *SETTINGS}
    for number, value in _fields(content):
        missing.discard(number)
        if number == PIECES:
            pieces.append(_piece(_message(value)))
        elif number in SETTINGS:
            names = SETTINGS[number]
            settings |= {names[n]: v for n, v in _fields(_message(value)) if n in names}
    if missing:  # the file is truncated between two fields
        raise ValueError(f"it has no field {min(missing)}")
    charsmap = _message(settings.pop("charsmap", b""))
    Charsmap(charsmap)
    numbers = {name: _integer(value) for name, value in settings.items()}
    model_type, unknown_id = numbers.pop("model_type", UNIGRAM), numbers.pop("unknown_id", 0)
    if not unknown_id < len(pieces):
        raise ValueError(f"its unknown piece is {unknown_id} of {len(pieces)}")
    flags = {name: bool(value) for name, value in numbers.items()}
    return SentencePieceModel(tuple(pieces), model_type, unknown_id, charsmap=charsmap, **flags)


def _piece(content: bytes) -> Piece:
    text, score, kind = "", 0.0, int(Kind.NORMAL)
    for number, value in _fields(content):
        if number == 1:
            text = _message(value).decode()
        elif number == 2:
            score = _float(_message(value))
        elif number == 3:
            kind = _integer(value)
    return Piece(text, score, kind)


def _float(content: bytes) -> float:
    if len(content) != 4:
        raise ValueError(f"a score has {len(content)} bytes, expected 4")
    score: float = struct.unpack("<f", content)[0]
    return score


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: integers as int, other types as their bytes."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(content, at)
            yield tag >> 3, value
            continue
        if wire_type == 2:
            length, at = _varint(content, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if at + length > len(content):
            raise ValueError(f"{length} bytes announced at byte {at} of {len(content)}")
        yield tag >> 3, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the position after it."""
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number does not end at byte {at}")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"the number {value} stands where text or a message belongs")
    return value


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes stand where a number belongs")
    return value
