"""Splits text into pieces as SentencePiece does, and looks their ids up in another vocabulary.

For tokenizers that Transformers runs on SentencePiece itself (Marian, M2M100): the model's ids of
pieces are not the vocabulary's. Knows neither the special tokens of a prompt nor decoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from struct import Struct

from tokenizers import models

from skynet.errors import CheckpointError
from skynet.tokenizer.charsmap import Charsmap
from skynet.tokenizer.sentencepiece_file import BPE, Kind, SentencePieceModel, parse_sentencepiece

SPACE = "▁"
# The tokenizers library needs a text for the unknown piece: one that no prompt contains.
UNKNOWN = "\0"
_FLOAT = Struct("<f")
LANGUAGE_CODE = re.compile(r">>.*?<<", re.DOTALL)


class SentencePieces:
    """Splits texts with one SentencePiece model."""

    def __init__(self, model: SentencePieceModel) -> None:
        self._model = model
        self._charsmap = Charsmap(model.charsmap)
        self._defined = _any_of(model.texts(Kind.USER_DEFINED))
        self._splitter = Merges(model) if model.model_type == BPE else BestPath(model)

    def split(self, text: str) -> list[str]:
        """The pieces of a text; a run of unknown characters is one piece.

        Raises:
            UnicodeEncodeError: half a surrogate pair.
        """
        pieces: list[str] = []
        for piece, unknown in self._splitter.split(self._normalize(text)):
            if unknown and self._model.byte_fallback:
                pieces += [f"<0x{byte:02X}>" for byte in piece.encode()]
            else:
                pieces.append(piece)
        return pieces

    def _normalize(self, text: str) -> str:
        model = self._model
        if not text:
            return ""
        text = "".join(
            part if defined else self._charsmap.apply(part)
            for part, defined in _split(self._defined, text)
        )
        if model.remove_extra_whitespaces:
            text = re.sub(" {2,}", " ", text.strip(" "))
        space = SPACE if model.escape_whitespaces else " "
        text = (space if model.add_dummy_prefix else "") + text.replace(" ", space)
        return text.rstrip(space) if model.remove_extra_whitespaces else text


class BestPath:
    """A unigram model: the segmentation with the highest sum of scores (Kudo, 2018).

    Sums are float32, as in SentencePiece: a run of one character has segmentations whose sums
    differ by rounding only, which then decides. After a user-defined piece SentencePiece rounds
    differently, and may choose another of two equal segmentations.
    """

    UNKNOWN_PENALTY = 10.0

    def __init__(self, model: SentencePieceModel) -> None:
        normal = [piece.score for piece in model.pieces if piece.kind == Kind.NORMAL]
        self._unknown = _float32(min(normal, default=0.0) - self.UNKNOWN_PENALTY)
        best = max(normal, default=0.0)
        # None: a prefix of pieces that is not a piece itself.
        self._scores: dict[str, float | None] = {}
        for piece in model.pieces:
            if piece.kind == Kind.NORMAL:
                self._add(piece.text, piece.score)
            elif piece.kind == Kind.USER_DEFINED:
                self._add(piece.text, _float32(len(piece.text.encode()) * best) - 0.1)

    def _add(self, text: str, score: float) -> None:
        for stop in range(1, len(text)):
            self._scores.setdefault(text[:stop], None)
        self._scores[text] = score

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Pieces, and whether each is unknown to the model."""
        # For each position in the text: the best sum up to it, and where its last piece begins.
        sums, begins = [0.0] * (len(text) + 1), [-1] * (len(text) + 1)
        for start in range(len(text)):
            for stop, score in self._pieces_at(text, start):
                total = _float32(sums[start] + score)
                if begins[stop] < 0 or total > sums[stop]:
                    sums[stop], begins[stop] = total, start
        pieces, stop = [], len(text)
        while stop:
            pieces.append(text[begins[stop] : stop])
            stop = begins[stop]
        return _join_unknown((piece, self._scores.get(piece) is None) for piece in pieces[::-1])

    def _pieces_at(self, text: str, start: int) -> Iterator[tuple[int, float]]:
        """End and score of each piece that begins at `start`, the shortest first."""
        scores, single = self._scores, False
        for stop in range(start + 1, len(text) + 1):
            piece = text[start:stop]
            if piece not in scores:
                break
            score = scores[piece]
            if score is not None:
                single = single or stop == start + 1
                yield stop, score
        if not single:
            yield start + 1, self._unknown


class Merges:
    """A BPE model: characters, merged pair by pair, the pair with the highest score first."""

    def __init__(self, model: SentencePieceModel) -> None:
        if model.texts(Kind.USER_DEFINED):
            raise ValueError("a BPE model with user-defined pieces is not supported")
        normal = {piece.text: piece.score for piece in model.pieces if piece.kind == Kind.NORMAL}
        merges = [
            (piece[:at], piece[at:])
            for piece in sorted(normal, key=lambda text: -normal[text])
            for at in range(1, len(piece))
            if piece[:at] in normal and piece[at:] in normal
        ]
        vocabulary = {text: number for number, text in enumerate([UNKNOWN, *normal])}
        self._model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True)

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Pieces, and whether each is unknown to the model."""
        data = text.encode()
        tokens = self._model.tokenize(text)
        return [(data[slice(*token.offsets)].decode(), token.id == 0) for token in tokens]


class PieceEncoder:
    """Text to token ids by pieces; reads the model at the first text."""

    def __init__(
        self,
        content: bytes,
        name: str,
        token_to_id: Callable[[str], int | None],
        unknown: str,
        special: Collection[str],
        codes_first: bool,
    ) -> None:
        """
        Args:
            content: a SentencePiece model's file; `name` is for errors.
            token_to_id: the vocabulary; None for a piece outside it, which becomes `unknown`.
            special: tokens that are never split.
            codes_first: a text may begin with a language code, `>>lang<<`, of one token.
        """
        self._content = content
        self._name = name
        self._token_to_id = token_to_id
        self._unknown = unknown
        self._special = _any_of(special)
        self._codes_first = codes_first

    def encode(self, text: str, around: Sequence[str | None] | None = None) -> list[int]:
        """Ids of a text with the special tokens `around` it, in which None stands for the text.

        Raises:
            UnicodeEncodeError: half a surrogate pair.
            CheckpointError: the model cannot be read.
        """
        tokens: list[str] = []
        for part, is_special in _split(self._special, text):
            tokens += [part] if is_special else self._split(part)
        if around is not None:
            at = around.index(None)
            tokens = [*filter(None, around[:at]), *tokens, *filter(None, around[at:])]
        return [self._id(token) for token in tokens]

    def _id(self, token: str) -> int:
        token_id = self._token_to_id(token)
        if token_id is None:
            token_id = self._token_to_id(self._unknown)
        if token_id is None:
            raise CheckpointError(f"the tokenizer has no {self._unknown!r}: split the model again")
        return token_id

    def _split(self, text: str) -> list[str]:
        code = LANGUAGE_CODE.match(text) if self._codes_first else None
        if code is None:
            return self._pieces.split(text)
        return [code[0], *self._pieces.split(text[code.end() :])]

    @cached_property
    def _pieces(self) -> SentencePieces:
        try:
            return SentencePieces(parse_sentencepiece(self._content))
        except ValueError as error:
            raise CheckpointError(f"{self._name} cannot be read: {error}") from error


def _join_unknown(pieces: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Joins neighbouring unknown pieces."""
    joined: list[tuple[str, bool]] = []
    for piece, unknown in pieces:
        if unknown and joined and joined[-1][1]:
            piece = joined.pop()[0] + piece
        joined.append((piece, unknown))
    return joined


def _float32(value: float) -> float:
    rounded: float = _FLOAT.unpack(_FLOAT.pack(value))[0]
    return rounded


def _any_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """A pattern that matches any of the texts, the longest first; None without texts."""
    by_length = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, by_length))) if by_length else None


def _split(pattern: re.Pattern[str] | None, text: str) -> list[tuple[str, bool]]:
    """Non-empty parts of the text, and whether each matches the pattern."""
    parts, at = [], 0
    for match in pattern.finditer(text) if pattern else ():
        parts += [(text[at : match.start()], False), (match[0], True)]
        at = match.end()
    return [(part, matches) for part, matches in [*parts, (text[at:], False)] if part]
