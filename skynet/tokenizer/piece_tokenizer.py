"""A tokenizer that Transformers runs on SentencePiece itself: Marian, M2M100.

Its vocabulary is not the SentencePiece model's: a text is split into pieces by the one, and their
ids are looked up in the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sentencepiece import SentencePieceProcessor

from skynet.errors import BadRequest, CheckpointError
from skynet.tokenizer.staged_tokenizer import FILE, SOURCE, TARGET, Pieces

CODE_START, CODE_END = ">>", "<<"


class PieceTokenizer:
    """Token ids of texts and texts of token ids; see `skynet.tokenizer.text.Backend`."""

    def __init__(
        self, pieces: Pieces, files: Mapping[str, bytes], split_special_tokens: bool
    ) -> None:
        """
        Raises:
            CheckpointError: a SentencePiece model is missing or damaged.
        """
        self._pieces = pieces
        target_vocabulary = pieces.target_vocabulary or pieces.vocabulary
        for vocabulary in (pieces.vocabulary, target_vocabulary):
            if pieces.unknown not in vocabulary:
                raise CheckpointError(f"{FILE}: {pieces.unknown!r} is not in the vocabulary")
        self._source = _processor(files, SOURCE)
        self._target = _processor(files, TARGET) if TARGET in files else self._source
        self._target_vocabulary = target_vocabulary
        # With a common vocabulary, Transformers decodes with the source model.
        self._decoder = self._target if pieces.target_vocabulary else self._source
        self._added = {token.content: token for token in pieces.added_tokens}
        self._matcher = None if split_special_tokens else _any_of(self._added)
        self._texts = {number: piece for piece, number in target_vocabulary.items()}
        self._texts |= {token.id: token.content for token in pieces.added_tokens}
        self.special_ids = frozenset(pieces.special_ids)
        self._special_texts = frozenset(pieces.special_tokens)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = self._encode(text, self._source, self._pieces.vocabulary)
        return [*self._pieces.prefix, *ids, *self._pieces.suffix] if add_special_tokens else ids

    def encode_inside(self, text: str) -> list[int]:
        return self._encode(text, self._target, self._target_vocabulary)

    def encode_for_embedding(self, text: str, max_tokens: int | None, lower: bool) -> list[int]:
        # Transformers has no lower-casing for these tokenizers, whatever `lower` says.
        pieces, ids = self._pieces, self.encode(text, add_special_tokens=False)
        if max_tokens is not None:
            ids = ids[: max(max_tokens - len(pieces.prefix) - len(pieces.suffix), 0)]
        return [*pieces.prefix, *ids, *pieces.suffix]

    def encode_pair(
        self, texts: tuple[str, str], max_tokens: int | None
    ) -> tuple[list[int], list[int]]:
        raise BadRequest("prompt: this model's tokenizer does not join two texts")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        silent = self.special_ids if skip_special_tokens else frozenset()
        shown = [number for number in ids if number not in silent and number in self._texts]
        text = self._join(self._texts[number] for number in shown)
        return (text.replace("▁", " ") if self._pieces.underline_is_space else text).strip()

    def token_to_id(self, token: str) -> int | None:
        added = self._added.get(token)
        return self._pieces.vocabulary.get(token) if added is None else added.id

    def has(self, token_id: int) -> bool:
        return token_id in self._texts

    def _join(self, tokens: Iterable[str]) -> str:
        """Joins tokens as Transformers' `convert_tokens_to_string` does."""
        text, run = "", list[str]()
        for token in tokens:
            if token in self._special_texts:
                text += self._decoder.decode(run) + token + self._pieces.after_special
                run.clear()
            else:
                run.append(token)
        return text + self._decoder.decode(run)

    def _encode(
        self, text: str, processor: SentencePieceProcessor, vocabulary: Mapping[str, int]
    ) -> list[int]:
        unknown = vocabulary[self._pieces.unknown]
        ids: list[int] = []
        for part, is_added in self._parts(text):
            pieces = [part] if is_added else self._split(part, processor)
            ids += [self._id(piece, vocabulary, unknown) for piece in pieces]
        return ids

    def _id(self, piece: str, vocabulary: Mapping[str, int], unknown: int) -> int:
        added = self._added.get(piece)
        return vocabulary.get(piece, unknown) if added is None else added.id

    def _split(self, text: str, processor: SentencePieceProcessor) -> list[str]:
        stop = text.find(CODE_END) if text.startswith(CODE_START) else -1
        if not self._pieces.codes_first or stop < 0:
            return list(processor.encode(text, out_type=str))
        stop += len(CODE_END)
        return [text[:stop], *processor.encode(text[stop:], out_type=str)]

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """The non-empty parts of a text, and whether each is an added token.

        Added tokens may strip the text beside them, or count only as whole words: the same steps,
        in the same order, as in Transformers' `PythonBackend.tokenize`.
        """
        text.encode()  # SentencePiece would take half a surrogate pair
        parts = [part for part in _split_at(self._matcher, text) if part]
        for at, part in enumerate(parts):
            token = self._added.get(part) if self._matcher else None
            if token is None:
                continue
            left = parts[at - 1] if at else ""
            right = parts[at + 1] if at + 1 < len(parts) else ""
            if token.rstrip and right:
                parts[at + 1] = right.lstrip()
            if token.lstrip and left:
                parts[at - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                parts[at - 1], parts[at] = parts[at - 1] + part, ""
            elif token.single_word and right and right[0] != " ":
                parts[at + 1], parts[at] = part + parts[at + 1], ""
        return ((part, self._matcher is not None and part in self._added) for part in parts if part)


def _processor(files: Mapping[str, bytes], name: str) -> SentencePieceProcessor:
    if name not in files:
        raise CheckpointError(f"{name} is missing beside {FILE}: split the model again")
    try:
        return SentencePieceProcessor(model_proto=files[name])
    except RuntimeError as error:
        raise CheckpointError(f"{name} is not a SentencePiece model: {error}") from error


def _any_of(tokens: Mapping[str, object]) -> re.Pattern[str] | None:
    """A pattern that matches any of the tokens, the longest first; None without tokens."""
    by_length = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, by_length))})") if by_length else None


def _split_at(pattern: re.Pattern[str] | None, text: str) -> list[str]:
    return [text] if pattern is None else pattern.split(text)
