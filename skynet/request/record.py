"""The record of a request: its options, its tokens, its end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import ConfigDict

from skynet.errors import WireError
from skynet.tracing import valid_traceparent
from skynet.wire import codec
from skynet.wire.typed_json import NO_OTHER_FIELDS, parse_object, read_json

MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class Options:
    """A request's checked options, of which `option_table.OPTIONS` has the meaning and limits.

    The model's defaults are included: the record holds everything that decides tokens.

    read: the fields of a `step.TextTask`, if the request is a text task.
    """

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_FIELDS

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    logprobs: int | None = None
    read: dict[str, Any] | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize_logits: bool = False
    decoder_start_token_id: int | None = None
    cache_salt: str | None = None
    structured_outputs: str | None = None  # JSON text
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = None

    def to_json(self) -> str:
        """The options that differ from the defaults above: an older orchestrator reads those."""
        defaults = Options().__dict__
        return json.dumps({n: value for n, value in self.__dict__.items() if value != defaults[n]})

    @classmethod
    def from_json(cls, text: str | bytes) -> Options:
        """Options of a record; those that are left out have their defaults.

        Raises:
            IncompatibleVersion: the request uses options that this version does not know.
            WireError: not options, or an option has a wrong type. Limits are not checked.
        """
        unknown = (
            ": unknown to the orchestrator, which is older than the client; leave it out, or "
            "upgrade the orchestrator"
        )
        return read_json(cls, text, "options", unknown=unknown)


@dataclass(frozen=True)
class Record:
    """An accepted request. Times are seconds since 1970 by Redis's clock; 0: not yet."""

    id: str
    prompt: tuple[int, ...]
    options: Options
    created: float
    deadline: float
    state: str = "waiting"  # waiting, running, done
    emitted: int = 0
    arrival: int = 0
    cancelled: bool = False
    model: str = ""  # digest of the model
    end: dict[str, Any] | None = None
    priority: int = 0  # 9 runs first
    started_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    sample_group: str = ""  # id of the first sample of the same prompt
    annotations: str = ""  # the client's, JSON: kept for whoever opens the request again
    traceparent: str = ""  # the span that it belongs to, as in W3C Trace Context

    @property
    def timeout_s(self) -> float:
        """The request's timeout as it was given: times of today are exact to a microsecond."""
        return round(self.deadline - self.created, 6)

    def fields(self) -> dict[str, str | bytes | int]:
        """The fields that are written at submit; Lua scripts write the others."""
        return {
            "prompt": codec.encode(np.asarray(self.prompt, dtype=np.int32)),
            "options": self.options.to_json(),
            "created": repr(self.created),
            "deadline": repr(self.deadline),
            "state": self.state,
            "emitted": self.emitted,
            "model": self.model,
            "priority": self.priority,
            "family": self.sample_group,
            "annotations": self.annotations,
            "traceparent": self.traceparent,
        }

    @classmethod
    def from_fields(cls, request_id: str, fields: Mapping[bytes, bytes]) -> Record:
        """The record that `fields` and Lua scripts wrote.

        Raises:
            WireError: a field is missing or has a wrong type. Limits of options are not checked.
        """
        try:
            return cls._from_fields(request_id, fields)
        except KeyError as error:
            raise WireError(f"field {error.args[0]!r} is missing") from None
        except (ValueError, OverflowError) as error:  # WireError is a ValueError
            raise WireError(str(error)) from None

    @classmethod
    def _from_fields(cls, request_id: str, fields: Mapping[bytes, bytes]) -> Record:
        return cls(
            id=request_id,
            prompt=_token_ids(fields[b"prompt"]),
            options=Options.from_json(fields[b"options"]),
            created=_seconds(fields, b"created"),
            deadline=_seconds(fields, b"deadline"),
            state=fields[b"state"].decode(),
            emitted=_count(fields, b"emitted"),
            arrival=_count(fields, b"arrival"),
            cancelled=b"cancel" in fields,
            model=fields.get(b"model", b"").decode(),
            end=parse_object(fields[b"end"], "the end") if b"end" in fields else None,
            priority=_count(fields, b"priority", b"0"),
            started_at=_seconds(fields, b"started_at", b"0"),
            first_token_at=_seconds(fields, b"first_token_at", b"0"),
            last_token_at=_seconds(fields, b"last_token_at", b"0"),
            sample_group=fields.get(b"family", b"").decode(),
            annotations=fields.get(b"annotations", b"").decode(),
            traceparent=valid_traceparent(fields.get(b"traceparent")),
        )


def _token_ids(data: bytes) -> tuple[int, ...]:
    array = codec.decode(data)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.int32:
        raise WireError("the prompt is not an array of int32")
    return tuple(array.tolist())


def _seconds(fields: Mapping[bytes, bytes], name: bytes, default: bytes | None = None) -> float:
    text = fields[name] if default is None else fields.get(name, default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise WireError(f"field {name!r}: {text!r:.40} is not a time")
    return seconds


def _count(fields: Mapping[bytes, bytes], name: bytes, default: bytes | None = None) -> int:
    text = fields[name] if default is None else fields.get(name, default)
    if not text.isdigit() or len(text) > 18:
        raise WireError(f"field {name!r}: {text!r:.40} is not a whole number")
    return int(text)


@dataclass(frozen=True)
class Logprobs:
    """Natural log-probabilities of the model's distribution: before temperature, filters, penalties
    and bans.

    logprob: of the chosen token.
    top: (token id, log-probability) of the likeliest tokens, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> str:
        return json.dumps([self.logprob, self.top])

    def as_dict(self) -> dict[str, Any]:
        """An item of `Completion.logprobs`."""
        return {"logprob": self.logprob, "top": [list(pair) for pair in self.top]}

    @classmethod
    def from_json(cls, text: str | bytes) -> Logprobs:
        """The value that `to_json` wrote.

        Raises:
            WireError: anything else.
        """
        return cls(*read_json(_Packed, text, "log-probabilities"))


class _Packed(NamedTuple):
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """One token of an answer; `text` is the text that it completes, often empty."""

    index: int
    id: int
    text: str
    logprobs: Logprobs | None = None  # if requested

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> Token:
        """An entry of a request's stream.

        Raises:
            WireError: it has no token, or is malformed.
        """
        try:
            index, token = int(fields[b"i"]), int(fields[b"t"])
            text = fields[b"p"].decode()
        except (KeyError, ValueError) as error:
            raise WireError(f"a token cannot be read: {type(error).__name__}: {error}") from None
        if index < 0 or not 0 <= token <= MAX_TOKEN_ID:
            raise WireError(f"a token cannot be read: id {token} at index {index}")
        logprobs = Logprobs.from_json(fields[b"l"]) if b"l" in fields else None
        return cls(index, token, text, logprobs)


@dataclass(frozen=True)
class End:
    """How a request ended: a finish reason, or an error's class name and message."""

    text: str = ""  # text that was held back until the end
    finish_reason: str = ""
    error: str = ""
    message: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)  # more fields of a `Completion`
    cached_tokens: int = 0  # of the prompt
    stop: str = ""  # the stop string that ended the answer

    def to_json(self) -> str:
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str | bytes) -> End:
        """The end that `to_json` wrote; fields that a later version has added are left out.

        Raises:
            WireError: anything else.
        """
        return read_json(cls, text, "the end of a request")
