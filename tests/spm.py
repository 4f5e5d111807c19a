"""SentencePiece models, written field by field: small enough to read."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from skynet.tokenizer.sentencepiece_file import UNIGRAM, Kind


def spm(
    pieces: Iterable[tuple[str, float] | tuple[str, float, Kind]],
    *,
    model_type: int = UNIGRAM,
    byte_fallback: bool = False,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = True,
    charsmap: bytes = b"",
) -> bytes:
    """A model's file; the unknown piece comes first, by itself."""
    entries = [("<unk>", 0.0, Kind.UNKNOWN), *pieces]
    trainer = number(3, model_type) + number(35, byte_fallback)
    normalizer = data(2, charsmap) if charsmap else b""
    normalizer += number(3, add_dummy_prefix) + number(4, remove_extra_whitespaces)
    return b"".join(map(piece, entries)) + data(2, trainer) + data(3, normalizer)


def piece(entry: tuple[str, float] | tuple[str, float, Kind]) -> bytes:
    text, score, *kind = entry
    content = data(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return data(1, content + (number(3, kind[0]) if kind else b""))


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def data(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
