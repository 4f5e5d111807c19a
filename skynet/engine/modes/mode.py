"""The interface between a mode of answering and the scheduler and engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from skynet.engine.output import Output
from skynet.engine.text_answers import TextOutput
from skynet.request.record import Token
from skynet.wire.step import Candidates, Row


@dataclass(frozen=True)
class RowResult:
    """A row of a finished step, and the shards' results for it.

    candidates: of each shard, for a row with a logits request; else empty.
    text_output: for a row with a text task; else None.
    """

    row: Row
    candidates: list[Candidates]
    text_output: TextOutput | None = None

    @property
    def is_progress(self) -> bool:
        """Whether the result extends the answer, unlike an earlier chunk of a prompt's."""
        return self.row.logits_request is not None or self.text_output is not None


@dataclass(frozen=True)
class Prefix:
    """The first tokens of a sequence, which need not be computed.

    source: another slot to copy them from; None: they lie in the sequence's first slot.
    """

    num_tokens: int
    source: int | None = None


class Mode(ABC):
    """How one request is answered: its rows in each step, and the use of their results.

    num_slots: slots that it occupies at once.
    chunked: whether its rows may be cut to fit a step's token budget.
    computed: leading tokens whose KV a sample of the same prompt may copy from the first slot.
    """

    num_slots = 1
    chunked = True

    def __init__(self, output: Output) -> None:
        self.output = output
        self.slots: list[int] = []
        self.encoder_kv: tuple[int, int] | None = None
        self.computed = 0

    def begin(self, slots: list[int], encoder_kv: tuple[int, int] | None) -> None:
        """Run in these slots from now on; nothing is computed in them yet.

        encoder_kv: `Row.encoder_kv` of an encoder-decoder's rows.
        """
        self.slots, self.encoder_kv, self.computed = slots, encoder_kv, 0

    @property
    def length(self) -> int:
        """Tokens before the answer and of the answer so far."""
        return self.output.length

    @property
    def unfilled(self) -> tuple[int, ...]:
        """The tokens that the first slot is to hold, while none of them is computed; else ()."""
        return ()

    @property
    def num_tokens(self) -> int:
        """Tokens that a replay computes."""
        return self.output.length

    @property
    def num_done(self) -> int:
        """Tokens of the answer so far."""
        return len(self.output.tokens)

    @property
    def min_length(self) -> int:
        """Tokens that a slot must hold at least."""
        return len(self.output.prefix) + 1

    @property
    def summary(self) -> str:
        """The finished request in a few words, for Flower."""
        return f"answer of {len(self.output.tokens)} tokens, {self.output.finish_reason}"

    @property
    @abstractmethod
    def is_decoding(self) -> bool:
        """Whether one more token per slot extends the answer."""

    @abstractmethod
    def rows(self, max_tokens: int, known: Prefix | None = None) -> list[Row]:
        """Rows for the next step, of `max_tokens` tokens if they can be cut.

        Changes no state that a replay needs: the step may fail.

        known: of `unfilled` at most all but the last.
        """

    @abstractmethod
    def take(self, results: Sequence[RowResult]) -> list[Token]:
        """Use the results of the last `rows`; the tokens to be written now.

        Raises:
            StepFailed, ValueError: the results make no answer.
        """
