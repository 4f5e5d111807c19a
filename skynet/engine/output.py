"""A request's answer as it grows: tokens, their text, and the reason for its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from skynet.architecture.architecture import Architecture
from skynet.engine.grammar import Constraint
from skynet.request.record import Logprobs, Options, Record, Token
from skynet.tokenizer.detokenizer import Detokenizer
from skynet.tokenizer.stop_strings import StopStrings
from skynet.tokenizer.text import Text

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers requests.

    end_ids: end-of-sequence tokens.
    max_length: tokens of prompt and answer together, as many as a slot holds.
    """

    arch: Architecture
    text: Text
    end_ids: frozenset[int]
    max_length: int


class KVKind(NamedTuple):
    """Sequences of one kind have the same keys and values for the same first tokens.

    cache_salt: a request option.
    is_past_rope_switch: of the sequence.
    """

    cache_salt: str | None
    is_past_rope_switch: bool


@dataclass
class Output:
    """The answer to one request, and the limits on it.

    prefix: tokens before the answer: the prompt, or a decoder's start token.
    rope_switch: length beyond which RoPE rotates all tokens differently (LongRoPE); 0: none.
    shared_length: longest sequence whose keys and values another one may use.
    is_recurrent: a slot can be continued from its last tokens only.
    constraint: of structured output; None: any tokens.
    logprobs: one entry per token, if requested.
    pending: tokens to be written together with the end of the request.
    answer: beams, an embedding, predictions, labels or prompt_logprobs; see `skynet.Completion`.
    prompt_logprobs: of the prompt's tokens after the first one, as far as they are known.
    """

    options: Options
    prefix: tuple[int, ...]
    end_ids: frozenset[int]
    max_length: int
    rope_switch: int
    shared_length: int
    is_recurrent: bool
    detokenizer: Detokenizer
    stop_strings: StopStrings
    constraint: Constraint | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""
    pending: list[Token] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)

    @classmethod
    def of(cls, record: Record, model: ModelInfo) -> Output:
        options = record.options
        start = options.decoder_start_token_id
        output = cls(
            options,
            record.prompt if start is None else (start,),
            model.end_ids,
            model.max_length,
            model.arch.rope_switch,
            model.arch.shared_length,
            model.arch.is_recurrent,
            model.text.detokenizer(options.skip_special_tokens),
            StopStrings(options.stop, options.include_stop_str_in_output),
        )
        if options.prompt_logprobs is not None:
            output.add_prompt_logprobs(())  # a prompt of one token has none
        return output

    @property
    def length(self) -> int:
        return len(self.prefix) + len(self.tokens)

    @property
    def is_past_rope_switch(self) -> bool:
        return 0 < self.rope_switch < self.length

    def rope_length(self, length: int) -> int:
        """`Row.prompt_length` of a row in a sequence of `length` tokens."""
        return length if 0 < self.rope_switch < length else len(self.prefix)

    def kv_kind(self, length: int) -> KVKind | None:
        """The kind of the keys and values in a sequence of `length` tokens; None: its own."""
        if length > self.shared_length:
            return None
        return KVKind(self.options.cache_salt, 0 < self.rope_switch < length)

    @property
    def is_scored(self) -> bool:
        """Whether all log-probabilities of the prompt are known that the request asks for."""
        wanted = self.options.prompt_logprobs is not None
        return not wanted or len(self.prompt_logprobs) >= len(self.prefix) - 1

    def add_prompt_logprobs(self, logprobs: Iterable[Logprobs]) -> None:
        """Of the next tokens of the prompt."""
        self.prompt_logprobs += logprobs
        if self.is_scored:
            items = [each.as_dict() for each in self.prompt_logprobs]
            self.answer = {"prompt_logprobs": [None, *items]}

    def append(self, token: int, logprobs: Logprobs | None = None) -> Token:
        """Add a token; sets `finish_reason` if it is the last one."""
        options = self.options
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        ends = token in options.stop_token_ids
        is_hidden = ends and not options.include_stop_str_in_output
        text, stopped = self.stop_strings.push("" if is_hidden else self.detokenizer.push(token))
        self.text += text
        complete = self.constraint is not None and self.constraint.push(token)
        is_end = token in self.end_ids and not options.ignore_eos
        if stopped or complete or ends or is_end:
            self.finish_reason = STOP
        elif len(self.tokens) >= options.max_tokens or self.length >= self.max_length:
            self.finish_reason = LENGTH
        return Token(len(self.tokens) - 1, token, text, logprobs)

    def restore(self, tokens: Iterable[int], logprobs: Iterable[Logprobs] = ()) -> None:
        """Continue after tokens that were written before: they are replayed, not written again."""
        for token in tokens:
            self.append(token)
        self.logprobs += logprobs

    def flush(self) -> str:
        """The rest of the text, held back so far as the possible start of a stop string."""
        rest, stopped = self.stop_strings.push(self.detokenizer.flush())
        if not stopped:
            rest += self.stop_strings.flush()
        self.text += rest
        return rest
