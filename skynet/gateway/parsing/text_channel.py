"""One text of a message, content or reasoning, as it is streamed."""

from __future__ import annotations

from collections.abc import Iterable

import regex


class TextChannel:
    """Removes special tokens, and white space at the beginning and the end.

    What may become either is held back.
    """

    def __init__(self, special_tokens: Iterable[str]) -> None:
        tokens = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._tokens = tokens
        self._special = regex.compile("|".join(map(regex.escape, tokens)) or r"(?!)")
        self._held = ""  # maybe the beginning of a special token
        self._space = ""  # maybe at the end of the text
        self._started = False

    def push(self, text: str) -> str:
        """The text that is certain now."""
        self._held += text
        shown, at = [], 0
        while (match := self._special.search(self._held, at, partial=True)) is not None:
            shown.append(self._held[at : match.start()])
            if match.partial or self._may_grow(match):
                at = match.start()
                break
            at = match.end()
        else:
            shown.append(self._held[at:])
            at = len(self._held)
        self._held = self._held[at:]
        return self._stripped("".join(shown))

    def close(self) -> str:
        """The text that is certain after the end of a region: no special token spans it."""
        held, self._held = self._special.sub("", self._held), ""
        return self._stripped(held)

    def _may_grow(self, match: regex.Match[str]) -> bool:
        token = match.group()
        return match.end() == len(self._held) and any(
            other != token and other.startswith(token) for other in self._tokens
        )

    def _stripped(self, text: str) -> str:
        if not self._started:
            text = text.lstrip()
        if not text:
            return ""
        self._started = True
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return kept
