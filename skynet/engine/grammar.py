"""Structured output: compiles grammars with llguidance and follows each answer in its grammar.

A constraint depends on the grammar and the tokens so far only, so that a replay makes the same
choices. What the option may hold is `skynet.request.structured`'s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait

from llguidance import LLMatcher, LLTokenizer

from skynet.engine.allowed_tokens import AllowedTokens, allowed_tokens
from skynet.errors import BadRequest
from skynet.request.structured import MAX_MESSAGE, NAME, grammar_of, parser_limits

MAX_COMPILED = 16  # grammars that are kept
NUM_THREADS = 4  # a slow grammar must not keep others waiting


class Grammars:
    """Compiles grammars for one model, in threads; llguidance drops the GIL meanwhile."""

    def __init__(
        self, tokenizer_json: str | None, vocab_size: int, end_ids: Collection[int]
    ) -> None:
        """
        tokenizer_json: of the tokenizers library; None: the model has none, and no grammar works.
        vocab_size: rows of the head; tokens that the tokenizer does not have are never allowed.
        """
        self.vocab_size = vocab_size
        self._end_ids = sorted(end_ids)
        self._threads = ThreadPoolExecutor(NUM_THREADS, "grammar")
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        # At once rather than for the first request: it takes a second for 128k tokens.
        self._tokenizer = self._threads.submit(self._load, tokenizer_json)

    def compile(self, option: str, wait_s: float = 0.0) -> Future[LLMatcher]:
        """The matcher of an option's text, before the first token; it is waited for a moment.

        Its exception is a BadRequest: the grammar, or the model's tokenizer, cannot be used.
        """
        future = self._compiled.pop(option, None) or self._threads.submit(self._compile, option)
        self._compiled[option] = future
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        wait([future], wait_s)  # most take a millisecond
        return future

    def _load(self, tokenizer_json: str | None) -> LLTokenizer:
        if tokenizer_json is None:
            raise BadRequest(f"{NAME}: this model has no tokenizer of the tokenizers library")
        try:
            return LLTokenizer(
                tokenizer_json, n_vocab=self.vocab_size, eos_token=self._end_ids or None
            )
        except BaseException as error:  # a panic of the Rust library is no Exception
            raise BadRequest(
                f"{NAME}: llguidance cannot use this model's tokenizer: {error!s:.{MAX_MESSAGE}}"
            ) from error

    def _compile(self, option: str) -> LLMatcher:
        tokenizer = self._tokenizer.result()
        try:
            grammar, limits = grammar_of(option), parser_limits()
            matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
            _check(matcher)
            warnings = matcher.get_grammar_warnings()
        except BadRequest:
            raise
        except BaseException as error:  # as above
            raise BadRequest(f"{NAME}: {error!s:.{MAX_MESSAGE}}") from error
        if warnings:
            raise BadRequest(f"{NAME}: {' '.join(warnings[0].split()):.{MAX_MESSAGE}}")
        return matcher


class Constraint:
    """The tokens that a grammar allows in one answer, one token after the other."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        """matcher: before the first token; it is not changed."""
        self._matcher = matcher.deep_copy()
        self._vocab_size = vocab_size
        self._next: AllowedTokens | None = None

    def push(self, token: int) -> bool:
        """A token of the answer; True if the answer is complete.

        Raises:
            BadRequest: the grammar does not allow it, or exceeds its limits.
        """
        self._next = None
        if not self._matcher.consume_token(token):
            _check(self._matcher)
            raise BadRequest(f"{NAME}: the grammar does not allow token {token}")
        return bool(self._matcher.is_stopped())

    def next_tokens(self) -> AllowedTokens:
        """The tokens that may follow.

        Raises:
            BadRequest: the grammar exceeds its limits, or allows no token.
        """
        if self._next is None:
            bits = self._matcher.compute_bitmask()
            _check(self._matcher)
            self._next = allowed_tokens(bits, self._vocab_size)
            if not self._next.count:
                raise BadRequest(f"{NAME}: the grammar allows none of the model's tokens here")
        return self._next


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise BadRequest(f"{NAME}: {' '.join(matcher.get_error().split()):.{MAX_MESSAGE}}")
