"""Beam search over one request: one slot per beam."""

from __future__ import annotations

from collections.abc import Sequence

from skynet.engine.modes.hypotheses import (
    Beam,
    FinishedHypotheses,
    best_continuations,
    next_beams,
)
from skynet.engine.modes.mode import Mode, Prefix, RowResult
from skynet.engine.output import LENGTH, Output
from skynet.engine.processors import rules_of
from skynet.request.record import Token
from skynet.tokenizer.text import Text
from skynet.wire.step import Candidates, LogitsRequest, Row


class BeamSearch(Mode):
    """One row per beam and step. The best hypothesis is written with the request's end.

    The record determines the search: a replay needs nothing else.
    """

    def __init__(self, output: Output, text: Text) -> None:
        super().__init__(output)
        options, prefix = output.options, output.prefix
        self.num_slots = options.num_beams
        self.beams = [Beam()]
        self._text = text
        self._max_tokens = min(options.max_tokens, output.max_length - len(prefix))
        self._finished = FinishedHypotheses(options, self._max_tokens)
        self._end_ids = () if options.ignore_eos else output.end_ids
        # Enough for `num_beams` unfinished ones though every beam may finish with each end token.
        self._num_continuations = max(2, 1 + len(self._end_ids)) * options.num_beams
        self._prefix_computed = 0

    @property
    def is_decoding(self) -> bool:
        num_prefix = len(self.output.prefix)
        return self._prefix_computed >= num_prefix - 1 and not any(
            beam.num_missing(num_prefix) for beam in self.beams
        )

    @property
    def length(self) -> int:
        return len(self.output.prefix) + len(self.beams[0].tokens)

    @property
    def unfilled(self) -> tuple[int, ...]:
        return () if self._prefix_computed else self.output.prefix

    @property
    def num_tokens(self) -> int:
        return len(self.output.prefix) + sum(len(beam.tokens) for beam in self.beams)

    @property
    def num_done(self) -> int:
        return len(self.beams[0].tokens)

    def begin(self, slots: list[int], encoder_kv: tuple[int, int] | None) -> None:
        super().begin(slots, encoder_kv)
        self._prefix_computed = 0
        for beam, slot in zip(self.beams, slots, strict=False):
            beam.slot, beam.computed, beam.source = slot, 0, None

    # -- rows ----------------------------------------------------------------------------------

    def rows(self, max_tokens: int, known: Prefix | None = None) -> list[Row]:
        """A chunk of what a replay lacks, or a row with a logits request for each beam.

        A replay computes the prefix in the first slot, then each beam up to its last token.
        """
        num_prefix = len(self.output.prefix)
        if self._prefix_computed < num_prefix:
            return [self._prefix_row(max_tokens, known or Prefix(self._prefix_computed))]
        missing = [beam for beam in self.beams if beam.num_missing(num_prefix)]
        if not missing:
            return [self._row(beam, 1, self._logits_request(beam)) for beam in self.beams]
        rows: list[Row] = []
        # What a slot is copied for comes first: a recurrent state does not go back further.
        for beam in sorted(missing, key=lambda beam: beam.source is None):
            if max_tokens > 0:
                rows.append(self._row(beam, min(max_tokens, beam.num_missing(num_prefix)), None))
                max_tokens -= len(rows[-1].tokens)
        return rows

    def _prefix_row(self, max_tokens: int, known: Prefix) -> Row:
        prefix, start = self.output.prefix, known.num_tokens
        stop = min(len(prefix), start + max_tokens)
        first = self.beams[0]
        is_first_choice = not first.tokens and stop == len(prefix)
        return Row(
            self.slots[0],
            start,
            prefix[start:stop],
            self._rope_length,
            self._logits_request(first) if is_first_choice else None,
            known.source,
            encoder_kv=self.encoder_kv,
        )

    def _row(self, beam: Beam, count: int, logits_request: LogitsRequest | None) -> Row:
        first = beam.computed - len(self.output.prefix)
        return Row(
            beam.slot,
            beam.computed,
            beam.tokens[first : first + count],
            self._rope_length,
            logits_request,
            beam.source,
            encoder_kv=self.encoder_kv,
        )

    @property
    def _rope_length(self) -> int:
        return self.output.rope_length(self.length)

    def _logits_request(self, beam: Beam) -> LogitsRequest:
        output = self.output
        beam.rules = rules_of(output.options, output.prefix, beam.tokens, output.end_ids)
        ids = () if beam.rules is None else beam.rules.ids
        return LogitsRequest(top=self._num_continuations, ids=ids, logprobs=0)

    # -- results -------------------------------------------------------------------------------

    def take(self, results: Sequence[RowResult]) -> list[Token]:
        if results[0].row.logits_request is None:
            self._note_replayed([result.row for result in results])
            return []
        self._prefix_computed = len(self.output.prefix)
        by_slot = {result.row.slot: result.candidates for result in results}
        self._choose([by_slot[beam.slot] for beam in self.beams])
        return []

    def _note_replayed(self, rows: Sequence[Row]) -> None:
        """A chunk of the prefix is computed, or of the beams' tokens after it."""
        num_prefix = len(self.output.prefix)
        if self._prefix_computed < num_prefix:
            self._prefix_computed = rows[0].stop
            if self._prefix_computed == num_prefix:
                for beam in self.beams:
                    beam.computed = num_prefix
                    beam.source = None if beam.slot == self.slots[0] else self.slots[0]
            return
        by_slot = {beam.slot: beam for beam in self.beams}
        for row in rows:
            by_slot[row.slot].computed, by_slot[row.slot].source = row.stop, None

    def _choose(self, shard_candidates: Sequence[Sequence[Candidates]]) -> None:
        output, options = self.output, self.output.options
        best = best_continuations(
            self.beams, shard_candidates, self._num_continuations, options.renormalize_logits
        )
        if not best and not self._finished.best:
            raise ValueError("every token is forbidden by the request's options")
        length = len(self.beams[0].tokens) + 1
        ends = [c.token in self._end_ids or length >= self._max_tokens for c in best]
        self._finished.add(self.beams, best, ends)
        chosen = [c for c, end in zip(best, ends, strict=True) if not end][: options.num_beams]
        if not chosen or self._finished.is_final(chosen[0].score, length):
            self._finish()
            return
        num_prefix = len(output.prefix)
        self.beams = next_beams(self.beams, chosen, self.slots, num_prefix)
        if num_prefix + length == output.rope_switch + 1:
            self.begin(self.slots, self.encoder_kv)  # all keys rotate differently from here on

    def _finish(self) -> None:
        """The best hypothesis becomes the answer's tokens."""
        output, best = self.output, self._finished.best
        output.pending = [output.append(token) for token in best[0].tokens]
        output.finish_reason = output.finish_reason or LENGTH
        output.answer = {
            "beams": [
                {
                    "text": self._decode(hypothesis.tokens),
                    "token_ids": list(hypothesis.tokens),
                    "score": round(hypothesis.score, 6),
                }
                for hypothesis in best
            ]
        }

    def _decode(self, tokens: Sequence[int]) -> str:
        if not self._text.has_tokenizer:
            return ""
        return self._text.decode(tokens, self.output.options.skip_special_tokens)
