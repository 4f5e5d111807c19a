"""SentencePiece's compiled normalisation rules, applied as SentencePiece applies them.

The `Precompiled` normalizer of the tokenizers library reads the same rules, but replaces a whole
grapheme by the replacement of its first characters: decomposed text loses its accents. This class
serves tokenizers that Transformers runs on SentencePiece itself.
"""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from


class Charsmap:
    """A double-array trie (darts-clone) of character sequences, and their replacements."""

    def __init__(self, content: bytes) -> None:
        """
        Args:
            content: `NormalizerSpec.precompiled_charsmap`; empty: no rules.

        Raises:
            ValueError: its sizes contradict each other.
        """
        self._units: memoryview | None = None
        if not content:
            return
        try:
            (size,) = unpack_from("<I", content)
        except StructError as error:
            raise ValueError("the normalisation rules are truncated") from error
        if size % 4 or not 4 <= size <= len(content) - 4:
            raise ValueError(f"the normalisation rules claim {size} of {len(content)} bytes")
        self._units = memoryview(content)[4 : 4 + size].cast("I")
        self._texts = content[4 + size :]

    def apply(self, text: str) -> str:
        """The text with the longest matching rule applied at each position, from left to right.

        Raises:
            UnicodeEncodeError: half a surrogate pair.
        """
        data = text.encode()
        if self._units is None:
            return text
        out, at = [], 0
        while at < len(data):
            stop, value = self._longest(data, at)
            if value is None:
                stop = at + _width(data[at])
                out.append(data[at:stop])
            else:
                out.append(self._replacement(value))
            at = stop
        return b"".join(out).decode(errors="replace")

    def _longest(self, data: bytes, start: int) -> tuple[int, int | None]:
        """End and value of the longest key that begins at `start`; value None: no key does."""
        units = self._units
        longest: tuple[int, int | None] = (start, None)
        if units is None:
            return longest
        position = _offset(units[0])
        for at in range(start, len(data)):
            position ^= data[at]
            if position >= len(units):
                break
            unit = units[position]
            if unit & 0x800000FF != data[at]:  # another byte's unit, or a value
                break
            position ^= _offset(unit)
            if unit >> 8 & 1 and position < len(units):
                longest = (at + 1, units[position] & 0x7FFFFFFF)
        return longest

    def _replacement(self, value: int) -> bytes:
        return self._texts[value : self._texts.find(b"\0", value)]


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)


def _width(first: int) -> int:
    """Number of bytes of the UTF-8 character with this first byte."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
