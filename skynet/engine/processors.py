"""Tokens that a request forbids, forces or penalizes, before its next token is chosen.

Hugging Face's logits processors, in their order (`GenerationMixin._get_logits_processor`), and then
OpenAI's penalties, over the few logits that they touch rather than over a whole vocabulary. They
depend on the record and the tokens so far only, so that a replay makes the same choices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skynet.engine.allowed_tokens import AllowedTokens
from skynet.request.record import Options

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.floating[Any]]

NOTHING: Ids = np.empty(0, np.int32)


class Offsets(NamedTuple):
    """Numbers that are added to the logits of some tokens; ids: rising, each once."""

    ids: Ids
    values: npt.NDArray[np.float32]

    def added(self, ids: Ids, logits: Floats) -> Floats:
        """The logits of the tokens `ids`, with their numbers."""
        if not len(self.ids):
            return logits
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, logits + self.values[places], logits)


NO_OFFSETS = Offsets(NOTHING, np.empty(0, np.float32))


@dataclass(frozen=True)
class Rules:
    """The rules for one token.

    bias: is added first, as Hugging Face's `sequence_bias`.
    seen: tokens whose logits `penalty` makes smaller (Keskar et al. 2019,
        https://arxiv.org/abs/1909.05858), each once.
    banned: tokens that must not be chosen.
    forced: the only tokens that may be chosen, with equal probabilities; None: any.
    grammar: the only tokens that may be chosen, with the model's probabilities; None: any.
    counted: is added last: OpenAI's penalties of tokens that the answer has, negative.
    """

    seen: Ids
    penalty: float
    banned: Ids
    forced: Ids | None = None
    grammar: AllowedTokens | None = None
    bias: Offsets = NO_OFFSETS
    counted: Offsets = NO_OFFSETS

    @property
    def is_listed(self) -> bool:
        """Whether no token but `ids` may be chosen."""
        listed = self.grammar is not None and self.grammar.allowed is not None
        return listed or self.forced is not None

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens whose logits are needed in any case; no rule touches the others."""
        return tuple(self._touched.tolist())

    @cached_property
    def _touched(self) -> Ids:
        touched: tuple[Ids, ...] = (self.seen, self.banned, self.bias.ids, self.counted.ids)
        if self.forced is not None:
            touched = (self.forced,)
        if self.grammar is not None:
            if self.grammar.allowed is not None:
                touched = (self.grammar.allowed,)
            elif self.grammar.forbidden is not None:
                touched = (*touched, self.grammar.forbidden)
        return np.unique(np.concatenate(touched))

    def touches(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of these tokens are in `Rules.ids`."""
        mask: npt.NDArray[np.bool_] = np.isin(ids, self._touched)
        return mask

    def apply(self, ids: Ids, logits: Floats) -> tuple[Ids, Floats]:
        """The allowed ones of these tokens, and their logits under the rules; (k,) each."""
        if self.grammar is not None:
            allowed = self.grammar.has(ids)
            ids, logits = ids[allowed], logits[allowed]
        if self.forced is not None:
            ids = ids[np.isin(ids, self.forced) & ~np.isin(ids, self.banned)]
            return ids, np.zeros(len(ids), np.float32)
        allowed = ~np.isin(ids, self.banned)
        ids, logits = ids[allowed], logits[allowed]
        logits, penalty = self.bias.added(ids, logits), np.float32(self.penalty)
        penalised = np.where(logits < 0, logits * penalty, logits / penalty)
        logits = np.where(np.isin(ids, self.seen), penalised, logits)
        return ids, self.counted.added(ids, logits)


NO_RULES = Rules(NOTHING, 1.0, NOTHING)


def rules_of(
    options: Options, prompt: Sequence[int], generated: Sequence[int], end_ids: Collection[int]
) -> Rules | None:
    """The rules for the token after `generated`, or None if there are none."""
    if not has_rules(options):
        return None
    tokens = np.asarray([*prompt, *generated], dtype=np.int32)
    suppressed = _suppressed(options, len(prompt), len(generated))
    forced = _forced(options, len(prompt), len(generated))
    if forced:  # in Hugging Face's order bans come before, suppressed tokens after
        return Rules(NOTHING, 1.0, suppressed, _array(forced))
    banned = _repeated_ngrams(tokens, options.no_repeat_ngram_size)
    banned |= _bad_words(tokens.tolist(), options.bad_words_ids, end_ids)
    if len(generated) < options.min_new_tokens:
        banned |= {*end_ids, *options.stop_token_ids}
    seen = np.unique(tokens) if options.repetition_penalty != 1 else NOTHING
    together = np.union1d(suppressed, _array(banned)).astype(np.int32)
    counted = _counted(options, tokens[len(prompt) :])
    return Rules(seen, options.repetition_penalty, together, bias=_bias(options), counted=counted)


def has_rules(options: Options) -> bool:
    """Whether a rule may change or forbid any token."""
    return bool(
        options.repetition_penalty != 1
        or options.frequency_penalty
        or options.presence_penalty
        or options.logit_bias
        or options.no_repeat_ngram_size
        or options.min_new_tokens
        or options.bad_words_ids
        or options.suppress_tokens
        or options.begin_suppress_tokens
        or options.forced_bos_token_id is not None
        or options.forced_eos_token_id
    )


def _bias(options: Options) -> Offsets:
    if not options.logit_bias:
        return NO_OFFSETS
    ids, values = zip(*sorted(options.logit_bias), strict=True)
    return Offsets(np.asarray(ids, dtype=np.int32), np.asarray(values, dtype=np.float32))


def _counted(options: Options, generated: Ids) -> Offsets:
    """OpenAI's penalties, of the tokens of the answer by their number."""
    if not (options.frequency_penalty or options.presence_penalty):
        return NO_OFFSETS
    ids, counts = np.unique(generated, return_counts=True)
    penalties = options.frequency_penalty * counts + options.presence_penalty
    return Offsets(ids, -penalties.astype(np.float32))


def _array(ids: Collection[int]) -> Ids:
    return np.asarray(sorted(ids), dtype=np.int32)


def _repeated_ngrams(tokens: Ids, size: int) -> set[int]:
    """Tokens that would repeat an n-gram of `tokens`."""
    if not size or len(tokens) < size:
        return set()
    ngrams = np.lib.stride_tricks.sliding_window_view(tokens, size)
    prefix = tokens[len(tokens) + 1 - size :]  # (size - 1,)
    same = (ngrams[:, :-1] == prefix).all(axis=1)
    return set(ngrams[same, -1].tolist())


def _bad_words(
    tokens: Sequence[int], words: Sequence[Sequence[int]], end_ids: Collection[int]
) -> set[int]:
    """Tokens that would complete a bad word; a bad word of one end token is ignored."""
    banned = set()
    for word in words:
        *prefix, last = word
        if not prefix:
            if last not in end_ids:
                banned.add(last)
        elif prefix[-1] == tokens[-1] and list(tokens[-len(prefix) :]) == prefix:
            banned.add(last)
    return banned


def _forced(options: Options, prompt_length: int, count: int) -> set[int]:
    """The last token of an answer of maximum length, and the first after a prompt of one token."""
    if options.forced_eos_token_id and count == options.max_tokens - 1:
        return set(options.forced_eos_token_id)
    if options.forced_bos_token_id is not None and prompt_length + count == 1:
        return {options.forced_bos_token_id}
    return set()


def _suppressed(options: Options, prompt_length: int, count: int) -> Ids:
    begin = 0 if prompt_length > 1 or options.forced_bos_token_id is None else 1
    first = options.begin_suppress_tokens if count == begin else ()
    return np.asarray([*options.suppress_tokens, *first], dtype=np.int32)
