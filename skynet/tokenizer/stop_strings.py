"""Stop strings in the text of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from skynet.errors import BadRequest


class StopStrings:
    """Ends an answer before the first stop string, which may span pieces.

    Of several, the one that is complete first counts; of those complete at once, the longest.

    matched: the one that ended it; "" for none.
    """

    def __init__(self, stops: Sequence[str], included: bool = False) -> None:
        """included: the answer ends after the stop string."""
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise BadRequest(f"stop: expected texts that are not empty, got {list(stops)!r}")
        self._stops, self._included = tuple(stops), included
        self._held = ""
        self._stopped = False
        self.matched = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that may be emitted, and whether a stop string is complete.

        A tail that may be the beginning of a stop string is held back.
        """
        if self._stopped:
            return "", True
        text, self._held = self._held + piece, ""
        hits = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            end, start = min(hits)
            self._stopped, self.matched = True, text[start:end]
            return text[: end if self._included else start], True
        length = max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - length
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """The text that is held back when the answer ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
