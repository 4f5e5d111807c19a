"""The choices of a beam search, as in Transformers' `GenerationMixin._beam_search`.

Log-probabilities are the model's, after the request's rules. Hypotheses are placed so that few
slots are copied: one child stays in its parent's slot, its siblings take slots of dropped beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from skynet.engine.processors import Floats, Ids, Rules
from skynet.request.record import Options
from skynet.wire.step import Candidates


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer; score: the sum of its log-probabilities, length-penalized."""

    tokens: tuple[int, ...]
    score: float


@dataclass
class Beam:
    """An unfinished hypothesis.

    tokens: after the prefix.
    score: the sum of the log-probabilities of its tokens.
    computed: tokens in its slot, the prefix included.
    source: another slot that the first `computed` tokens are copied from, or None.
    rules: for its next token.
    """

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    slot: int = -1
    computed: int = 0
    source: int | None = None
    rules: Rules | None = None

    def num_missing(self, num_prefix: int) -> int:
        """Tokens to be computed before the last one, without those of the prefix."""
        return max(0, num_prefix + len(self.tokens) - 1 - max(self.computed, num_prefix))


@dataclass(frozen=True)
class Continuation:
    """A beam, by its index, and a possible next token."""

    score: float
    parent: int
    token: int


def best_continuations(
    beams: Sequence[Beam],
    shard_candidates: Sequence[Sequence[Candidates]],
    count: int,
    renormalize: bool,
) -> list[Continuation]:
    """The `count` best of all beams together, best first.

    shard_candidates: of each beam, those of all shards.
    """
    choices = [
        _logprobs(candidates, beam.rules, renormalize)
        for beam, candidates in zip(beams, shard_candidates, strict=True)
    ]
    tokens = np.concatenate([ids for ids, _ in choices])
    scores = np.concatenate(
        [beam.score + logprobs for beam, (_, logprobs) in zip(beams, choices, strict=True)]
    )
    parents = np.repeat(np.arange(len(choices)), [len(ids) for ids, _ in choices])
    best = np.lexsort((tokens, parents, -scores))[:count]
    chosen = (scores[best], parents[best], tokens[best])
    return list(map(Continuation, *(column.tolist() for column in chosen)))


def next_beams(
    beams: Sequence[Beam], chosen: Sequence[Continuation], slots: Sequence[int], num_prefix: int
) -> list[Beam]:
    """The beams of the next step. No slot is both copied from and copied into."""
    parents = {beams[c.parent].slot for c in chosen}
    free = iter([slot for slot in slots if slot not in parents])
    taken: set[int] = set()
    children = []
    for continuation in chosen:
        parent = beams[continuation.parent]
        child = replace(
            parent,
            tokens=(*parent.tokens, continuation.token),
            score=continuation.score,
            computed=num_prefix + len(parent.tokens),
            source=None,
        )
        if parent.slot in taken:
            child.slot, child.source = next(free), parent.slot
        taken.add(parent.slot)
        children.append(child)
    return children


@dataclass
class FinishedHypotheses:
    """The `num_beams` best finished answers, best first; Transformers' `BeamHypotheses`.

    max_tokens: of an answer.
    """

    options: Options
    max_tokens: int
    best: list[Hypothesis] = field(default_factory=list)

    def add(
        self, beams: Sequence[Beam], best: Sequence[Continuation], finished: Sequence[bool]
    ) -> None:
        """Add the finished ones among the `num_beams` best continuations of `beams`."""
        limit = self.options.num_beams
        if self.options.early_stopping is True and len(self.best) == limit:
            return
        for continuation, is_finished in zip(best[:limit], finished[:limit], strict=True):
            if is_finished:
                tokens = (*beams[continuation.parent].tokens, continuation.token)
                score = continuation.score / float(len(tokens)) ** self.options.length_penalty
                self.best.append(Hypothesis(tokens, score))
        self.best.sort(key=lambda hypothesis: -hypothesis.score)
        del self.best[limit:]

    def is_final(self, best_score: float, length: int) -> bool:
        """Whether no unfinished beam can score higher than the finished ones.

        best_score: of the best unfinished beam, of `length` tokens.
        """
        options = self.options
        if len(self.best) < options.num_beams:
            return False
        if options.early_stopping is True:
            return True
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = self.max_tokens
        best_possible = best_score / float(length) ** options.length_penalty
        return best_possible <= self.best[-1].score


def _logprobs(
    candidates: Sequence[Candidates], rules: Rules | None, renormalize: bool
) -> tuple[Ids, Floats]:
    """Possible next tokens and their log-probabilities under the rules, (k,) float64 each.

    renormalize: so that the probabilities of all allowed tokens sum to 1.
    """
    best = [part.best for part in candidates if part.best is not None]
    if len(best) != len(candidates):
        raise ValueError("the shards returned no log-probabilities")
    total = float(np.logaddexp.reduce([part.total for part in best]))
    ids = np.concatenate([part.ids for part in candidates])
    logprobs = np.concatenate([part.logits for part in candidates]).astype(np.float64) - total
    if rules is None:
        return ids, logprobs
    ids, allowed = rules.apply(ids, logprobs)
    if not renormalize:
        return ids, allowed
    # Tokens that no rule touches enter as each shard's sum: most are not among the candidates.
    parts = [part.peak + np.log(part.mass) for part in candidates if part.mass > 0]
    rest = np.logaddexp.reduce(parts) - total if parts and rules.forced is None else -np.inf
    touched = allowed[np.isin(ids, rules.ids)]
    return ids, allowed - np.logaddexp(rest, np.logaddexp.reduce(touched, initial=-np.inf))
