"""Beam search over one request: several hypotheses side by side, each in a slot of its own.

The choices are those of Transformers' `GenerationMixin._beam_search`, on log-probabilities of the
model after the request's rules. Which hypothesis lies in which slot is decided so that few are
copied: a hypothesis goes on in its parent's slot, its siblings take slots of those that ended.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from skynet.engine.processors import Floats, Ids, Rules, rules_of
from skynet.request.record import Options
from skynet.wire.step import Candidates, LogitsRequest, Row


@dataclass(frozen=True)
class Hypothesis:
    """An answer that has ended, and its score: the sum of log-probabilities, by length."""

    tokens: tuple[int, ...]
    score: float


@dataclass
class Beam:
    """A hypothesis that goes on.

    score: the sum of the log-probabilities of its tokens.
    source: the slot that its first `computed` tokens are copied from, if it is not its own.
    """

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    slot: int = -1
    computed: int = 0
    source: int | None = None
    rules: Rules | None = None


@dataclass(frozen=True)
class Continuation:
    """A beam and what may come next."""

    score: float
    parent: int
    token: int


@dataclass
class BeamSearch:
    """The search for one request's answer.

    prefix: the tokens before the answer.
    end_ids: tokens that end an answer, unless the options say that none does.
    most_tokens: of an answer.
    rope_switch: tokens beyond which all of a sequence is computed otherwise; 0: never.
    """

    options: Options
    prefix: tuple[int, ...]
    end_ids: Collection[int]
    max_tokens: int
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    finished: list[Hypothesis] = field(default_factory=list)  # best first
    over: bool = False
    rope_switch: int = 0
    _slots: list[int] = field(default_factory=list)
    _prefix_computed: int = 0

    @property
    def is_near(self) -> bool:
        """Does one more step extend the hypotheses?"""
        return self._prefix_computed >= len(self.prefix) - 1 and not any(
            self._lacking(beam) for beam in self.running
        )

    @property
    def num_tokens(self) -> int:
        """That all hypotheses have together, and the prefix."""
        return len(self.prefix) + sum(len(beam.tokens) for beam in self.running)

    def begin(self, slots: Sequence[int]) -> None:
        """Go on in these slots, of which nothing is computed yet."""
        self._slots, self._prefix_computed = list(slots), 0
        for beam, slot in zip(self.running, slots, strict=False):
            beam.slot, beam.computed, beam.source = slot, 0, None

    # -- rows ----------------------------------------------------------------------------------

    def rows(self, max_tokens: int) -> list[Row]:
        """What to compute next: up to `max_tokens` of what a replay lacks, or a row for each beam.

        A replay begins with the prefix, in the first slot, and ends before each beam's last token.
        """
        if self._prefix_computed < len(self.prefix):
            return [self._prefix_row(max_tokens)]
        lacking = [beam for beam in self.running if self._lacking(beam)]
        if not lacking:
            return [self._row(beam, 1, self._logits_request(beam)) for beam in self.running]
        rows: list[Row] = []
        for beam in lacking:
            if max_tokens > 0:
                rows.append(self._row(beam, min(max_tokens, self._lacking(beam)), None))
                max_tokens -= len(rows[-1].tokens)
        return rows

    def _lacking(self, beam: Beam) -> int:
        """Tokens before its last one that are not computed; the prefix is no beam's."""
        have = max(beam.computed, len(self.prefix))
        return max(0, len(self.prefix) + len(beam.tokens) - 1 - have)

    def _prefix_row(self, max_tokens: int) -> Row:
        start = self._prefix_computed
        stop = min(len(self.prefix), start + max_tokens)
        first = self.running[0]
        is_first_choice = not first.tokens and stop == len(self.prefix)
        logits_request = self._logits_request(first) if is_first_choice else None
        return Row(
            self._slots[0], start, self.prefix[start:stop], self._rope_length, logits_request
        )

    def _row(self, beam: Beam, count: int, logits_request: LogitsRequest | None) -> Row:
        first = beam.computed - len(self.prefix)
        tokens = beam.tokens[first : first + count]
        return Row(beam.slot, beam.computed, tokens, self._rope_length, logits_request, beam.source)

    @property
    def _length(self) -> int:
        """Of every hypothesis that goes on, with the prefix."""
        return len(self.prefix) + len(self.running[0].tokens)

    @property
    def _rope_length(self) -> int:
        """What the prompt's length is to ropes."""
        return self._length if 0 < self.rope_switch < self._length else len(self.prefix)

    def _logits_request(self, beam: Beam) -> LogitsRequest:
        beam.rules = rules_of(self.options, self.prefix, beam.tokens, self.end_ids)
        ids = () if beam.rules is None else beam.rules.ids
        return LogitsRequest(top=self._keep, ids=ids, logprobs=0)

    @property
    def _keep(self) -> int:
        """Continuations to look at: enough for all beams to go on though others end."""
        return max(2, 1 + len(self._ends)) * self.options.num_beams

    @property
    def _ends(self) -> Collection[int]:
        return () if self.options.ignore_eos else self.end_ids

    # -- choices -------------------------------------------------------------------------------

    def take(self, rows: Sequence[Row], offers: Sequence[Sequence[Candidates]]) -> bool:
        """The step with these rows is done; offers: of each row with a want. True: they chose.

        Raises:
            ValueError: the rules leave no token.
        """
        if rows[0].logits_request is None:
            self._go_on(rows)
            return False
        self._prefix_computed = len(self.prefix)
        by_slot = {row.slot: found for row, found in zip(rows, offers, strict=True)}
        self._choose([by_slot[beam.slot] for beam in self.running])
        return True

    def _go_on(self, rows: Sequence[Row]) -> None:
        """A part of the prefix is done, or of a replay."""
        if self._prefix_computed < len(self.prefix):
            self._prefix_computed = rows[0].stop
            if self._prefix_computed == len(self.prefix):
                self._share_prefix()
            return
        by_slot = {beam.slot: beam for beam in self.running}
        for row in rows:
            by_slot[row.slot].computed, by_slot[row.slot].source = row.stop, None

    def _share_prefix(self) -> None:
        """After a replay of the prefix: every beam goes on from there."""
        for beam in self.running:
            beam.computed = len(self.prefix)
            beam.source = None if beam.slot == self._slots[0] else self._slots[0]

    def _choose(self, offers: Sequence[Sequence[Candidates]]) -> None:
        found = self._continuations(offers)
        if not found and not self.finished:
            raise ValueError("every token is forbidden by the request's options")
        length = len(self.running[0].tokens) + 1
        ends = [c.token in self._ends or length >= self.max_tokens for c in found]
        self._finish(found, ends, length)
        going_on = [c for c, end in zip(found, ends, strict=True) if not end]
        chosen = going_on[: self.options.num_beams]
        self.over = not chosen or self._is_over(chosen[0].score, length)
        if not self.over:
            self.running = self._children(chosen)
            if self._length == self.rope_switch + 1:
                self.begin(self._slots)

    def _continuations(self, offers: Sequence[Sequence[Candidates]]) -> list[Continuation]:
        """The best of all beams together, best first."""
        renormalize = self.options.renormalize_logits
        found = [
            _logprobs(own, beam.rules, renormalize)
            for beam, own in zip(self.running, offers, strict=True)
        ]
        tokens = np.concatenate([ids for ids, _ in found])
        scores = np.concatenate(
            [beam.score + logprobs for beam, (_, logprobs) in zip(self.running, found, strict=True)]
        )
        parents = np.repeat(np.arange(len(found)), [len(ids) for ids, _ in found])
        best = np.lexsort((tokens, parents, -scores))[: self._keep]
        chosen = (scores[best], parents[best], tokens[best])
        return list(map(Continuation, *(column.tolist() for column in chosen)))

    def _finish(self, found: Sequence[Continuation], ends: Sequence[bool], length: int) -> None:
        """Keep the best answers that have ended; only the best continuations count as such."""
        most = self.options.num_beams
        if self.options.early_stopping is True and len(self.finished) == most:
            return
        for continuation, end in zip(found[:most], ends[:most], strict=True):
            if end:
                tokens = (*self.running[continuation.parent].tokens, continuation.token)
                score = continuation.score / float(length) ** self.options.length_penalty
                self.finished.append(Hypothesis(tokens, score))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[most:]

    def _is_over(self, best_score: float, length: int) -> bool:
        """Can no beam that goes on become better than those that have ended?"""
        options = self.options
        if len(self.finished) < options.num_beams:
            return False
        if options.early_stopping is True:
            return True
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = self.max_tokens
        best_possible = best_score / float(length) ** options.length_penalty
        return best_possible <= self.finished[-1].score

    def _children(self, chosen: Sequence[Continuation]) -> list[Beam]:
        """The next beams. Nothing is copied from a slot that is copied into."""
        parents = {self.running[c.parent].slot for c in chosen}
        free = iter([slot for slot in self._slots if slot not in parents])
        taken: set[int] = set()
        children = []
        for continuation in chosen:
            parent = self.running[continuation.parent]
            child = replace(
                parent,
                tokens=(*parent.tokens, continuation.token),
                score=continuation.score,
                computed=len(self.prefix) + len(parent.tokens),
                source=None,
            )
            if parent.slot in taken:
                child.slot, child.source = next(free), parent.slot
            taken.add(parent.slot)
            children.append(child)
        return children


def _logprobs(
    offers: Sequence[Candidates], rules: Rules | None, renormalize: bool
) -> tuple[Ids, Floats]:
    """Tokens that may come next, and their log-probabilities under the rules, (k,) float64 each.

    renormalize: so that the probabilities of all that may come are 1 together.
    """
    best = [offer.best for offer in offers if offer.best is not None]
    if len(best) != len(offers):
        raise ValueError("the shards told no log-probabilities")
    total = float(np.logaddexp.reduce([part.total for part in best]))
    ids = np.concatenate([offer.ids for offer in offers])
    logprobs = np.concatenate([offer.logits for offer in offers]).astype(np.float64) - total
    if rules is None:
        return ids, logprobs
    ids, allowed = rules.apply(ids, logprobs)
    if not renormalize:
        return ids, allowed
    # What no rule touches is told as a sum, as most of it is not among the offers.
    parts = [offer.peak + np.log(offer.mass) for offer in offers if offer.mass > 0]
    rest = np.logaddexp.reduce(parts) - total if parts and rules.forced is None else -np.inf
    touched = allowed[np.isin(ids, rules.ids)]
    return ids, allowed - np.logaddexp(rest, np.logaddexp.reduce(touched, initial=-np.inf))
