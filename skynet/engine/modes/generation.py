"""Generation: one token per step, greedy or sampled."""

from __future__ import annotations

from collections.abc import Sequence

from skynet.engine.modes.mode import Mode, Prefix, RowResult
from skynet.engine.output import Output
from skynet.engine.processors import Rules, rules_of
from skynet.engine.sampling import logits_request_of, logprobs_of, sample
from skynet.request.record import Token
from skynet.wire.step import Row


class Generation(Mode):
    """Prefill in chunks, then one token per step."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._rules: Rules | None = None  # for the next token

    @property
    def is_decoding(self) -> bool:
        return self.output.length - self.computed <= 1

    @property
    def unfilled(self) -> tuple[int, ...]:
        prefix, tokens = self.output.prefix, self.output.tokens
        return () if self.computed else (*prefix, *tokens) if tokens else prefix

    def rows(self, max_tokens: int, known: Prefix | None = None) -> list[Row]:
        """One row; the one that reaches the last token has a logits request."""
        output = self.output
        prefix, length = output.prefix, output.length
        start = self.computed if known is None else known.num_tokens
        stop = min(length, start + max_tokens)
        if start >= len(prefix):
            tokens = tuple(output.tokens[start - len(prefix) : stop - len(prefix)])
        else:
            tokens = (*prefix[start:stop], *output.tokens[: max(0, stop - len(prefix))])
        logits_request = None
        if stop == length:
            self._rules = rules_of(output.options, prefix, output.tokens, output.end_ids)
            logits_request = logits_request_of(output.options, self._rules)
        return [
            Row(
                self.slots[0],
                start,
                tokens,
                output.rope_length(length),
                logits_request,
                None if known is None else known.source,
                encoder_kv=self.encoder_kv,
            )
        ]

    def take(self, results: Sequence[RowResult]) -> list[Token]:
        (result,) = results
        self.computed = result.row.stop
        if result.row.logits_request is None:
            return []
        output, candidates = self.output, result.candidates
        options = output.options
        token = sample(candidates, options, len(output.tokens), self._rules)
        logprobs = None
        if options.logprobs is not None:
            logprobs = logprobs_of(candidates, token, options.logprobs)
        was_past = output.is_past_rope_switch
        written = output.append(token, logprobs)
        if output.is_past_rope_switch != was_past:
            self.computed = 0  # all keys rotate differently from here on
        return [written]
