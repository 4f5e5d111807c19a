"""Which keys a token of a decoder sees, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Sequences are divided into chunks of `size` tokens: a token sees the tokens of
    its chunk up to itself."""

    size: int


# A number: the last so many tokens, itself included. None: all tokens up to itself.
Window = int | Chunk | None


def first_key(position: int, window: Window) -> int:
    """The first key that the token at `position` sees."""
    if window is None:
        return 0
    if isinstance(window, Chunk):
        return position // window.size * window.size
    return max(0, position + 1 - window)
