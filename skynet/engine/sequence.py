"""A request in the engine: its slots, its output so far, and the mode that answers it.

The record and the tokens written so far determine everything else: slots are filled again by
replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from skynet.engine.modes.mode import Mode, Prefix, RowResult
from skynet.engine.modes.registry import mode_of
from skynet.engine.output import KVKind, ModelInfo, Output
from skynet.engine.timings import Timings
from skynet.request.record import End, Record, Token
from skynet.wire.step import Row


@dataclass(eq=False)
class EncoderKV:
    """The place of one encoder output's keys and values in every shard; samples share it.

    filled: the encoder has run.
    in_flight: it runs in a step that is not finished.
    """

    place: int
    num_users: int = 1
    filled: bool = False
    in_flight: bool = False


@dataclass(eq=False)
class Sequence:
    """A request that waits for slots or runs in them.

    admitted: it has had slots, under this orchestrator or an earlier one.
    suspect: a step with it failed in a shard or killed one: it runs alone.
    failures, losses: consecutive steps with it alone that failed in a shard, or killed one.
    by_layer: NaN or infinity was found in its rows: its steps have chords of one layer, to tell
        which layer it is.
    last_alone: number of its last batch alone.
    cached_tokens: of the prompt, that were in a slot when this orchestrator computed it.
    """

    record: Record
    output: Output
    mode: Mode
    timings: Timings
    slots: list[int] = field(default_factory=list)
    encoder_kv: EncoderKV | None = None  # of an encoder-decoder's prompt
    in_flight: bool = False
    cancelled: bool = False
    admitted: bool = False
    suspect: bool = False
    failures: int = 0
    losses: int = 0
    by_layer: bool = False
    last_alone: int = 0
    cached_tokens: int = 0

    @classmethod
    def of(
        cls, record: Record, model: ModelInfo, clock: Callable[[], float] = time.time
    ) -> Sequence:
        """`clock`: seconds, by the clock of the record's times."""
        output = Output.of(record, model)
        admitted = record.state == "running" or record.emitted > 0
        return cls(
            record, output, mode_of(output, model), Timings.of(record, clock), admitted=admitted
        )

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def finish_reason(self) -> str:
        """`stop` or `length` once nothing is missing.

        Another orchestrator may have written the last token and not the end, and the prompt's
        log-probabilities are written with the end.
        """
        return self.output.finish_reason if self.output.is_scored else ""

    @property
    def slot(self) -> int | None:
        """The first of its slots."""
        return self.slots[0] if self.slots else None

    @property
    def has_encoder(self) -> bool:
        """Whether the prompt goes to an encoder, and the answer comes from a decoder."""
        return self.record.options.decoder_start_token_id is not None

    @property
    def kv_kind(self) -> KVKind | None:
        """The kind of keys and values that it needs next; None: only its own."""
        return self.output.kv_kind(self.mode.length)

    @property
    def needs_encoder(self) -> bool:
        """Whether the encoder has to run before the next token."""
        return self.encoder_kv is not None and not self.encoder_kv.filled

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Order in the queue for slots: admitted before, then priority, then arrival."""
        return not self.admitted, -self.record.priority, self.record.arrival

    def take_place(self, slots: list[int], encoder_kv: EncoderKV | None) -> None:
        """Run in these slots from now on; nothing is computed in them yet."""
        self.slots, self.encoder_kv = slots, encoder_kv
        place = None if encoder_kv is None else (encoder_kv.place, len(self.record.prompt))
        self.mode.begin(slots, place)

    def leave_place(self) -> None:
        """Its slots are free or lost."""
        self.slots, self.encoder_kv, self.in_flight = [], None, False
        self.mode.begin([], None)

    def encoder_row(self) -> Row:
        """The whole prompt, for the encoder."""
        if self.encoder_kv is None:
            raise ValueError(f"request {self.id} has no place for its encoder output")
        prompt = self.record.prompt
        return Row(self.encoder_kv.place, 0, prompt, len(prompt))

    def rows(self, max_tokens: int, known: Prefix | None = None) -> list[Row]:
        """Rows for the next step; see `Mode.rows`."""
        if not self.slots:
            raise ValueError(f"request {self.id} has no slot")
        if self.mode.unfilled and not self.output.tokens:
            self.cached_tokens = 0 if known is None else known.num_tokens
        return self.mode.rows(max_tokens, known)

    def take(self, results: Items[RowResult]) -> list[Token]:
        """Use the results of a step; the tokens to be written now. See `Mode.take`."""
        tokens = self.mode.take(results)
        if results[0].row.logits_request is not None:
            self.timings.note_token()
        return tokens

    def end(self) -> End:
        """The end of an answered request, with the text that was held back."""
        return End(
            text=self.output.flush(),
            finish_reason=self.finish_reason,
            timings=self.timings.report(len(self.output.tokens)),
            answer=self.output.answer,
            cached_tokens=self.cached_tokens,
            stop=self.output.stop_strings.matched,
        )
