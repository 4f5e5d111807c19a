"""One request as the engine sees it: its tokens, where they lie, and how it will end.

(prompt, generated, sampling options) is all that matters; the slot and what is computed can be
rebuilt from it by replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from typing import Any

from skynet.engine.beams import BeamSearch, Hypothesis
from skynet.engine.processors import Rules, rules_of
from skynet.engine.sampling import logits_request_of
from skynet.engine.text_answers import TextAnswer, Vector
from skynet.request.record import End, Logprobs, Record, Token
from skynet.tokenizer.detokenizer import Detokenizer
from skynet.tokenizer.stop_strings import StopStrings
from skynet.wire.step import Candidates, Row

STOP, LENGTH = "stop", "length"


@dataclass(eq=False)
class EncoderKV:
    """Where shards keep what an encoder has read. Samples of one prompt share it.

    filled: it has been read.
    """

    place: int
    num_users: int = 1
    filled: bool = False
    in_flight: bool = False


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
    rope_switch: int = 0  # tokens beyond which all of it is computed otherwise; 0: never
    generated: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)  # of `generated`, if asked for
    rules: Rules | None = None  # for the next token
    text: str = ""
    slots: list[int] = field(default_factory=list)  # one, or one for each beam
    encoder_kv: EncoderKV | None = None  # of an encoder-decoder's prompt
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
    reading: TextAnswer | None = None  # what the text is read for, if nothing is generated
    answer: dict[str, Any] = field(default_factory=dict)  # what was read, or all beams
    beams: BeamSearch | None = None
    pending: list[Token] = field(default_factory=list)  # to be written with the end
    decode: Callable[[Items[int]], str] = lambda _: ""  # the text of some tokens

    def __post_init__(self) -> None:
        """Go on with what an orchestrator before this one wrote down."""
        record, options = self.record, self.record.options
        if options.num_beams > 1:
            most = min(options.max_tokens, self.max_length - len(self.prefix))
            self.beams = BeamSearch(
                options, self.prefix, self.end_ids, most, rope_switch=self.rope_switch
            )
        self.started_at = self.started_at or record.started_at
        self.first_token_at = self.first_token_at or record.first_token_at
        self.last_token_at = self.last_token_at or record.last_token_at
        self.admitted = self.admitted or record.state == "running" or record.emitted > 0

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def has_source(self) -> bool:
        """Does an encoder read the prompt?"""
        return self.record.options.decoder_start_token_id is not None

    @property
    def prefix(self) -> tuple[int, ...]:
        """What stands before the answer: the prompt, or what a decoder begins with."""
        start = self.record.options.decoder_start_token_id
        return self.record.prompt if start is None else (start,)

    @property
    def length(self) -> int:
        return len(self.prefix) + len(self.generated)

    @property
    def num_tokens(self) -> int:
        """That a replay computes."""
        return self.length if self.beams is None else self.beams.num_tokens

    @property
    def num_done(self) -> int:
        """Tokens of the answer so far; of a search, of its hypotheses."""
        return len(self.generated if self.beams is None else self.beams.running[0].tokens)

    @property
    def is_stretched(self) -> bool:
        """Is it so long that ropes turn otherwise?"""
        return 0 < self.rope_switch < self.length

    @property
    def slot(self) -> int | None:
        """The first of its slots."""
        return self.slots[0] if self.slots else None

    @property
    def num_slots(self) -> int:
        """How many it needs at once."""
        return self.record.options.num_beams

    @property
    def is_near(self) -> bool:
        """Does one more token bring the next one of the answer?"""
        return self.length - self.computed <= 1 if self.beams is None else self.beams.is_near

    @property
    def to_read(self) -> bool:
        """Is the prompt still to be read by the encoder?"""
        return self.encoder_kv is not None and not self.encoder_kv.filled

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Place in the queue for slots, least first: who has had one, priority, arrival."""
        return not self.admitted, -self.record.priority, self.record.arrival

    def restore(self, tokens: Items[int], logprobs: Items[Logprobs] = ()) -> None:
        """Take up the tokens that were emitted before: they will be replayed, not emitted."""
        for token in tokens:
            self._take(token)
        self.logprobs += logprobs

    def take_place(self, slots: list[int], encoder_kv: EncoderKV | None) -> None:
        """Run here from now on; nothing of it is computed yet."""
        self.slots, self.encoder_kv, self.computed = slots, encoder_kv, 0
        if self.beams is not None:
            self.beams.begin(slots)

    def leave_place(self) -> None:
        """Nothing that was computed is there any more."""
        self.slots, self.encoder_kv, self.computed, self.in_flight = [], None, 0, False

    def source_row(self) -> Row:
        """The whole prompt, for the encoder."""
        if self.encoder_kv is None:
            raise ValueError(f"request {self.id} has no place for what is read of its prompt")
        prompt = self.record.prompt
        return Row(self.encoder_kv.place, 0, prompt, len(prompt))

    def next_rows(self, max_tokens: int, source: int | None = None) -> list[Row]:
        """What to compute next, one row or one for each beam; see `next_row`."""
        if self.beams is None:
            return [self.next_row(max_tokens, source)]
        return [replace(row, encoder_kv=self._encoder_kv()) for row in self.beams.rows(max_tokens)]

    def next_row(self, max_tokens: int, source: int | None = None) -> Row:
        """Up to `max_tokens` tokens that are not computed yet; the last one has a logits request.

        Keep `computed` as it is: the step may fail. A text that is read is never cut.

        source: a slot that has the whole prompt; all of it but the last token is taken from there.
        """
        if self.slot is None:
            raise ValueError(f"request {self.id} has no slot")
        prefix = self.prefix
        if self.reading is not None:
            return Row(self.slot, 0, prefix, len(prefix), text_task=self.reading.text_task)
        start = self.computed if source is None else len(prefix) - 1
        stop = min(self.length, start + max_tokens)
        if start >= len(prefix):
            tokens = tuple(self.generated[start - len(prefix) : stop - len(prefix)])
        else:
            tokens = (*prefix[start:stop], *self.generated[: max(0, stop - len(prefix))])
        logits_request = None
        if stop == self.length:
            options = self.record.options
            self.rules = rules_of(options, prefix, self.generated, self.end_ids)
            logits_request = logits_request_of(options, self.rules)
        encoder_kv = self._encoder_kv()
        length = self.length if self.is_stretched else len(prefix)
        return Row(self.slot, start, tokens, length, logits_request, source, encoder_kv=encoder_kv)

    def _encoder_kv(self) -> tuple[int, int] | None:
        return None if self.encoder_kv is None else (self.encoder_kv.place, len(self.record.prompt))

    def choose_beams(self, rows: Items[Row], offers: Items[Items[Candidates]]) -> bool:
        """A step of this beam search is done; True if hypotheses were chosen.

        Sets `finish_reason` if the search is over, and the best hypothesis is the answer.

        Raises:
            ValueError: no token may come next.
        """
        if self.beams is None or not self.beams.take(rows, offers):
            return False
        now = self.clock()
        self.first_token_at, self.last_token_at = self.first_token_at or now, now
        if self.beams.over:
            self._conclude(self.beams.finished)
        return True

    def _conclude(self, found: Items[Hypothesis]) -> None:
        for index, token in enumerate(found[0].tokens):
            self.pending.append(Token(index, token, self._take(token)))
        self.finish_reason = self.finish_reason or LENGTH
        self.answer = {
            "beams": [
                {
                    "text": self.decode(each.tokens),
                    "token_ids": list(each.tokens),
                    "score": round(each.score, 6),
                }
                for each in found
            ]
        }

    def append(self, token: int, logprobs: Logprobs | None = None) -> Token:
        """Add a sampled token; sets `finish_reason` if it is the last one."""
        now = self.clock()
        self.first_token_at = self.first_token_at or now
        self.last_token_at = now
        piece = self._take(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        return Token(len(self.generated) - 1, token, piece, logprobs)

    def take_text_answer(self, found: Vector | list[list[Candidates]]) -> None:
        """What the shards found in the text: this ends the request.

        Raises:
            StepFailed: it is none.
        """
        if self.reading is not None:
            self.answer = self.reading.answer(found)
            self.finish_reason = STOP

    def _take(self, token: int) -> str:
        was_stretched = self.is_stretched
        self.generated.append(token)
        if self.is_stretched != was_stretched:
            self.computed = 0
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
        timings = self.timings()
        return End(text=rest, finish_reason=self.finish_reason, timings=timings, answer=self.answer)

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
