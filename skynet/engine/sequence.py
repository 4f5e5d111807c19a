"""One request as the engine sees it: its tokens, where they lie, and how it will end.

(prompt, generated, sampling options) is all that matters; the slot and what is computed can be
rebuilt from it by replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from skynet.engine.processors import Rules, rules_of
from skynet.engine.sampling import want_of
from skynet.step import Row
from skynet.store.requests import End, Logprobs, Record, Token
from skynet.text import Detokenizer, StopStrings

STOP, LENGTH = "stop", "length"


@dataclass(eq=False)
class Sequence:
    """A request that is waiting for a slot or running in one.

    clock: seconds by the clock that the record's times are in, Redis's.
    """

    record: Record
    detokenizer: Detokenizer
    stop_strings: StopStrings
    end_ids: frozenset[int]
    max_length: int  # prompt and answer together
    generated: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)  # of `generated`, if asked for
    rules: Rules | None = None  # for the next token
    text: str = ""
    slot: int | None = None
    computed: int = 0  # tokens whose keys and values lie in the slot
    in_flight: bool = False
    cancelled: bool = False
    finish_reason: str = ""
    started_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    suspect: bool = False  # a step with it failed in a shard: it is run alone
    failures: int = 0  # steps that failed with it alone, one after the other
    losses: int = 0  # shards that died with it alone, one after the other
    admitted: bool = False  # it has had a slot, under this orchestrator or another
    last_alone: int = 0  # number of its last batch alone
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        """Go on with what an orchestrator before this one wrote down."""
        record = self.record
        self.started_at = self.started_at or record.started_at
        self.first_token_at = self.first_token_at or record.first_token_at
        self.last_token_at = self.last_token_at or record.last_token_at
        self.admitted = self.admitted or record.state == "running" or record.emitted > 0

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def length(self) -> int:
        return len(self.record.prompt) + len(self.generated)

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Place in the queue for slots, least first: who has had one, priority, arrival."""
        return not self.admitted, -self.record.priority, self.record.arrival

    def restore(self, tokens: Items[int], logprobs: Items[Logprobs] = ()) -> None:
        """Take up the tokens that were emitted before: they will be replayed, not emitted."""
        for token in tokens:
            self._take(token)
        self.logprobs += logprobs

    def next_row(self, max_tokens: int, source: int | None = None) -> Row:
        """Up to `max_tokens` tokens that are not computed yet, with a `want` if they reach the end.

        Keep `computed` as it is: the step may fail.

        source: a slot that has the whole prompt; all of it but the last token is taken from there.
        """
        if self.slot is None:
            raise ValueError(f"request {self.id} has no slot")
        prompt = self.record.prompt
        start = self.computed if source is None else len(prompt) - 1
        stop = min(self.length, start + max_tokens)
        if start >= len(prompt):
            tokens = tuple(self.generated[start - len(prompt) : stop - len(prompt)])
        else:
            tokens = (*prompt[start:stop], *self.generated[: max(0, stop - len(prompt))])
        want = None
        if stop == self.length:
            options = self.record.options
            self.rules = rules_of(options, prompt, self.generated, self.end_ids)
            want = want_of(options, self.rules)
        return Row(self.slot, start, tokens, len(prompt), want, source)

    def append(self, token: int, logprobs: Logprobs | None = None) -> Token:
        """Add a sampled token; sets `finish_reason` if it is the last one."""
        now = self.clock()
        self.first_token_at = self.first_token_at or now
        self.last_token_at = now
        piece = self._take(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        return Token(len(self.generated) - 1, token, piece, logprobs)

    def _take(self, token: int) -> str:
        self.generated.append(token)
        piece, stopped = self.stop_strings.push(self.detokenizer.push(token))
        self.text += piece
        if stopped or (token in self.end_ids and not self.record.options.ignore_eos):
            self.finish_reason = STOP
        elif (
            len(self.generated) >= self.record.options.max_tokens or self.length >= self.max_length
        ):
            self.finish_reason = LENGTH
        return piece

    def end(self) -> End:
        """How this request ended, with the text that was held back."""
        rest, stopped = self.stop_strings.push(self.detokenizer.flush())
        if not stopped:
            rest += self.stop_strings.flush()
        self.text += rest
        return End(text=rest, finish_reason=self.finish_reason, timings=self.timings())

    def timings(self) -> dict[str, float]:
        """Seconds since submission, and tokens per second after the first token."""
        now = self.clock()
        decode_s = self.last_token_at - self.first_token_at
        return {
            "queued_s": round((self.started_at or now) - self.record.created, 6),
            "first_token_s": round((self.first_token_at or now) - self.record.created, 6),
            "decode_tokens_per_s": round((len(self.generated) - 1) / decode_s, 3)
            if decode_s > 0 and len(self.generated) > 1
            else 0.0,
            "total_s": round(now - self.record.created, 6),
        }
