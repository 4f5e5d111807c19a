"""Text tasks: an embedding, predictions for masks, or labels, from one pass over the whole text."""

from __future__ import annotations

from collections.abc import Sequence

from skynet.engine.modes.mode import Mode, Prefix, RowResult
from skynet.engine.output import STOP, Output
from skynet.engine.text_answers import TextAnswer
from skynet.request.record import Token
from skynet.wire.step import Row


class TextTaskMode(Mode):
    """One row with all tokens, since an encoder's tokens attend to each other; no tokens out."""

    chunked = False

    def __init__(self, output: Output, text_answer: TextAnswer) -> None:
        super().__init__(output)
        self._text_answer = text_answer

    @property
    def min_length(self) -> int:
        return len(self.output.prefix)

    @property
    def summary(self) -> str:
        return self._text_answer.text_task.task

    @property
    def is_decoding(self) -> bool:
        return self.output.length <= 1

    def rows(self, max_tokens: int, known: Prefix | None = None) -> list[Row]:
        tokens = self.output.prefix
        return [Row(self.slots[0], 0, tokens, len(tokens), text_task=self._text_answer.text_task)]

    def take(self, results: Sequence[RowResult]) -> list[Token]:
        (result,) = results
        if result.text_output is not None:
            self.output.answer = self._text_answer.answer(result.text_output)
            self.output.finish_reason = STOP
        return []
