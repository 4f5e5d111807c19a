"""Removes spaces before punctuation from answers: `clean_up_tokenization_spaces`.

Transformers does so for tokenizers with that setting in tokenizer_config.json.
"""

from __future__ import annotations

# Each loses its spaces, in this order.
SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
LONGEST = max(map(len, SPACED))


def clean_up(text: str) -> str:
    for spaced in SPACED:
        text = text.replace(spaced, spaced.replace(" ", ""))
    return text


class SpaceCleaner:
    """`clean_up` of a text in pieces: the joined results are `clean_up` of the joined text."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that no further piece can change; a space and its next characters wait."""
        self._held += piece
        space = self._held.rfind(" ")
        ready = space < 0 or len(self._held) - space >= LONGEST
        cut = len(self._held) if ready else space
        # The next characters may lose their space and complete one of these.
        if self._held[:cut].endswith((" ", " '", " n")):
            return ""
        done, self._held = self._held[:cut], self._held[cut:]
        return clean_up(done)

    def flush(self) -> str:
        """The text that is held back at the end."""
        held, self._held = self._held, ""
        return clean_up(held)
