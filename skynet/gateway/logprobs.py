"""Log-probabilities in OpenAI's two forms: of chats, and of completions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from skynet.request.record import Logprobs

Spell = Callable[[int], str]  # the text of a token id


def chat_entry(token_id: int, logprobs: Logprobs, spell: Spell) -> dict[str, Any]:
    """An item of `choices[].logprobs.content`."""
    return {
        **_spelled(token_id, logprobs.logprob, spell),
        "top_logprobs": [_spelled(each, value, spell) for each, value in logprobs.top],
    }


def _spelled(token_id: int, logprob: float, spell: Spell) -> dict[str, Any]:
    text = spell(token_id)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


class LegacyLogprobs:
    """`choices[].logprobs` of completions: four lists, an item for each token.

    A token and the same token among the likeliest have the same number, exactly: evaluation
    harnesses compare them to see whether it was the likeliest.
    """

    def __init__(self, spell: Spell) -> None:
        self._spell = spell
        self.offset = 0
        self.tokens: list[str] = []
        self.token_logprobs: list[float | None] = []
        self.top_logprobs: list[dict[str, float] | None] = []
        self.text_offset: list[int] = []

    def add(
        self, token_id: int, logprob: float | None, top: Iterable[Sequence[float]] = ()
    ) -> None:
        """logprob: None for the first token of a prompt, which has none."""
        text = self._spell(token_id)
        self.tokens.append(text)
        self.text_offset.append(self.offset)
        self.offset += len(text)
        self.token_logprobs.append(logprob)
        if logprob is None:
            self.top_logprobs.append(None)
            return
        named: dict[str, float] = {}
        for each, value in top:
            named.setdefault(self._spell(int(each)), value)  # of equal texts the likeliest
        named.setdefault(text, logprob)
        self.top_logprobs.append(named)

    def take(self) -> dict[str, Any]:
        """What was added since the last call; offsets go on."""
        taken = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.tokens, self.token_logprobs = [], []
        self.top_logprobs, self.text_offset = [], []
        return taken
