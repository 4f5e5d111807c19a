"""Tokens that a request forbids, forces or penalizes, before its next token is chosen.

Hugging Face's logits processors, in their order (`GenerationMixin._get_logits_processor`), over
the few logits that they touch rather than over a whole vocabulary. They depend on the record and
the tokens so far only, so that a replay makes the same choices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.engine.allowed_tokens import AllowedTokens
from skynet.request.record import Options

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.floating[Any]]

NOTHING: Ids = np.empty(0, np.int32)


@dataclass(frozen=True)
class Rules:
    """The rules for one token.

    seen: tokens whose logits `penalty` makes smaller (Keskar et al. 2019,
        https://arxiv.org/abs/1909.05858), each once.
    banned: tokens that must not be chosen.
    forced: the only tokens that may be chosen, with equal probabilities; None: any.
    grammar: the only tokens that may be chosen, with the model's probabilities; None: any.
    """

    seen: Ids
    penalty: float
    banned: Ids
    forced: Ids | None = None
    grammar: AllowedTokens | None = None

    @property
    def is_listed(self) -> bool:
        """Whether no token but `ids` may be chosen."""
        listed = self.grammar is not None and self.grammar.allowed is not None
        return listed or self.forced is not None

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens whose logits are needed in any case; no rule touches the others."""
        touched = (self.seen, self.banned) if self.forced is None else (self.forced,)
        if self.grammar is not None:
            if self.grammar.allowed is not None:
                touched = (self.grammar.allowed,)
            elif self.grammar.forbidden is not None:
                touched = (*touched, self.grammar.forbidden)
        return tuple(np.unique(np.concatenate(touched)).tolist())

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
        penalty = np.float32(self.penalty)
        penalised = np.where(logits < 0, logits * penalty, logits / penalty)
        return ids, np.where(self.was_seen(ids), penalised, logits)

    def was_seen(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of these are penalized."""
        mask: npt.NDArray[np.bool_] = np.isin(ids, self.seen)
        return mask


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
        banned |= set(end_ids)
    seen = np.unique(tokens) if options.repetition_penalty != 1 else NOTHING
    together = np.union1d(suppressed, _array(banned)).astype(np.int32)
    return Rules(seen, options.repetition_penalty, together)


def has_rules(options: Options) -> bool:
    """Whether a rule may change or forbid any token."""
    return bool(
        options.repetition_penalty != 1
        or options.no_repeat_ngram_size
        or options.min_new_tokens
        or options.bad_words_ids
        or options.suppress_tokens
        or options.begin_suppress_tokens
        or options.forced_bos_token_id is not None
        or options.forced_eos_token_id
    )


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
