"""Generation: one token per step, greedy or sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from skynet.engine.modes.mode import Mode, Prefix, RowResult
from skynet.engine.output import LENGTH, Output
from skynet.engine.processors import NO_RULES, Rules, rules_of
from skynet.engine.sampling import logits_request_of, logprobs_of, sample
from skynet.engine.scores import prompt_logprobs_of
from skynet.request.record import Token
from skynet.wire.scores import ScoresRequest
from skynet.wire.step import Row


class Generation(Mode):
    """Prefill in chunks, then one token per step.

    fast_forward: whether tokens without an alternative are appended without a step.
    """

    fast_forward = True

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._rules: Rules | None = None  # for the next token

    @property
    def is_decoding(self) -> bool:
        return self.output.length - self.computed <= 1

    @property
    def unfilled(self) -> tuple[int, ...]:
        output = self.output
        if self.computed or not output.is_scored:  # a prompt without computation has no scores
            return ()
        return (*output.prefix, *output.tokens) if output.tokens else output.prefix

    @property
    def min_length(self) -> int:
        return len(self.output.prefix) + min(1, self.output.options.max_tokens)

    def rows(self, max_tokens: int, known: Prefix | None = None) -> list[Row]:
        """One row; the one that reaches the last token has a logits request.

        A prompt that is to be scored is computed by itself, also where an earlier orchestrator has
        written tokens after it: beyond a RoPE switch its numbers would be others.
        """
        output = self.output
        prefix = output.prefix
        length = output.length if output.is_scored else len(prefix)
        start = self.computed if known is None else known.num_tokens
        stop = min(length, start + max_tokens)
        if start >= len(prefix):
            tokens = tuple(output.tokens[start - len(prefix) : stop - len(prefix)])
        else:
            tokens = (*prefix[start:stop], *output.tokens[: max(0, stop - len(prefix))])
        logits_request = None
        if stop == output.length:
            self._rules = self._next_rules()
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
                scores=self._scores_request(start, stop),
            )
        ]

    def _scores_request(self, start: int, stop: int) -> ScoresRequest | None:
        """What is not known yet of the tokens after positions [start, stop)."""
        output = self.output
        top = output.options.prompt_logprobs
        first = max(start, len(output.prompt_logprobs))
        targets = output.prefix[first + 1 : stop + 1]
        if top is None or output.is_scored or not targets:
            return None
        return ScoresRequest(first - start, targets, top)

    def take(self, results: Sequence[RowResult]) -> list[Token]:
        (result,) = results
        self.computed = result.row.stop
        output, candidates = self.output, result.candidates
        if result.row.scores is not None:
            output.add_prompt_logprobs(prompt_logprobs_of(candidates, result.row.scores.top))
            if output.is_scored and output.rope_length(output.length) != result.row.prompt_length:
                self.computed = 0  # with the answer's tokens, all keys rotate differently
        if result.row.logits_request is None:
            return []
        options = output.options
        if not options.max_tokens:
            output.finish_reason = LENGTH
            return []
        token = sample(candidates, options, len(output.tokens), self._rules)
        logprobs = None
        if options.logprobs is not None:
            logprobs = logprobs_of(candidates, token, options.logprobs)
        was_past = output.is_past_rope_switch
        written = [output.append(token, logprobs), *self._fast_forward()]
        if output.is_past_rope_switch != was_past:
            self.computed = 0  # all keys rotate differently from here on
        return written

    def _fast_forward(self) -> list[Token]:
        """Append tokens for as long as a grammar leaves one choice: they need no logits.

        They are computed together with the token after them. With log-probabilities, each token
        has a step of its own.
        """
        output, written = self.output, list[Token]()
        while output.constraint is not None and not output.finish_reason:
            allowed = output.constraint.next_tokens()  # now, since a grammar may exceed its limits
            if allowed.count > 1 or allowed.allowed is None or not self.fast_forward:
                break
            rules = self._rules_of_options() or NO_RULES
            ids, _ = rules.apply(allowed.allowed, np.zeros(1, np.float32))
            if output.options.logprobs is not None or not len(ids):
                break
            written.append(output.append(int(ids[0])))
        return written

    def _next_rules(self) -> Rules | None:
        """The rules for the next token, those of a grammar included."""
        rules, constraint = self._rules_of_options(), self.output.constraint
        if constraint is None:
            return rules
        return replace(rules or NO_RULES, grammar=constraint.next_tokens())

    def _rules_of_options(self) -> Rules | None:
        output = self.output
        return rules_of(output.options, output.prefix, output.tokens, output.end_ids)
