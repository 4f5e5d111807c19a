"""Token ids to text, as the tokens of an answer arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from skynet.tokenizer.cleanup import SpaceCleaner


class Decoder(Protocol):
    """The part of `skynet.tokenizer.text.Backend` that answers need."""

    special_ids: frozenset[int]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def has(self, token_id: int) -> bool: ...


class Detokenizer:
    """Text of one answer, token by token: the joined pieces are the decoding of all ids.

    A token's text depends on the token before it (spaces, halves of a UTF-8 character), so each
    token is decoded in a window that begins at the piece before the last: constant cost per token.
    Text that ends in U+FFFD may be half of a character and is held back until it is complete. In a
    vocabulary with byte tokens (`<0x0A>`) an invalid byte changes its whole run of byte tokens to
    U+FFFD; characters of the run that were emitted before stay.
    """

    # A character has four bytes at most, so an older incomplete one stays incomplete.
    MAX_CHARACTER_TOKENS = 4

    def __init__(self, tokenizer: Decoder | None, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._num_emitted = 0  # tokens at the window's start whose text is emitted

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty."""
        if self._tokenizer is None:
            return ""
        if self._skip_special_tokens and token_id in self._tokenizer.special_ids:
            return ""
        if not self._tokenizer.has(token_id):  # padding of the vocabulary
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith("\ufffd"):
            return self._release_broken(text)
        before = self._decode(self._window[: self._num_emitted])
        if len(text) <= len(before) or not text.startswith(before):
            return ""
        return self._emit(text, before, len(self._window))

    def flush(self) -> str:
        """The text that is held back at the end of the answer."""
        if self._num_emitted == len(self._window):
            return ""
        text = self._decode(self._window)
        before = self._decode(self._window[: self._num_emitted])
        if not text.startswith(before):
            text, before = self._decode(self._window[self._num_emitted :]), ""
        return self._emit(text, before, len(self._window))

    def _emit(self, text: str, before: str, stop: int) -> str:
        self._window = self._window[self._num_emitted :]
        self._num_emitted = stop - self._num_emitted
        return text[len(before) :]

    def _release_broken(self, text: str) -> str:
        """Emit bytes that no further byte can complete, so that the window stays short."""
        newest = len(self._window) - self.MAX_CHARACTER_TOKENS
        for cut in range(newest, max(self._num_emitted, newest - self.MAX_CHARACTER_TOKENS), -1):
            head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
            before = self._decode(self._window[: self._num_emitted])
            # Equal only if no character spans the cut.
            if head + tail == text and head.startswith(before):
                return self._emit(head, before, cut)
        return ""

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None or not ids:
            return ""
        return self._tokenizer.decode(ids, self._skip_special_tokens)


class CleaningDetokenizer(Detokenizer):
    """A detokenizer that removes spaces before punctuation."""

    def __init__(self, tokenizer: Decoder | None, skip_special_tokens: bool = True) -> None:
        super().__init__(tokenizer, skip_special_tokens)
        self._spaces = SpaceCleaner()

    def push(self, token_id: int) -> str:
        return self._spaces.push(super().push(token_id))

    def flush(self) -> str:
        return self._spaces.push(super().flush()) + self._spaces.flush()
