"""Spaces before punctuation, taken out of answers: `clean_up_tokenization_spaces`.

Transformers does so for tokenizers whose tokenizer_config.json asks for it.
"""

from __future__ import annotations

# Replaced one after the other, in this order; each loses its spaces.
SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
LONGEST = max(map(len, SPACED))


def clean_up(text: str) -> str:
    for spaced in SPACED:
        text = text.replace(spaced, spaced.replace(" ", ""))
    return text


class SpaceCleaner:
    """`clean_up` of a text that comes in pieces: what goes out, joined, is that of the whole."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> str:
        """What no further piece can change. Held back: a space and what may belong to it."""
        self._held += piece
        space = self._held.rfind(" ")
        ready = space < 0 or len(self._held) - space >= LONGEST
        cut = len(self._held) if ready else space
        # What follows may lose its space, and so come to stand where these wait for it.
        if self._held[:cut].endswith((" ", " '", " n")):
            return ""
        done, self._held = self._held[:cut], self._held[cut:]
        return clean_up(done)

    def flush(self) -> str:
        """What is held back, when the text is over."""
        held, self._held = self._held, ""
        return clean_up(held)
