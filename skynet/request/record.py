"""The record of a request: its options, its tokens, its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from skynet.errors import IncompatibleVersion
from skynet.wire import codec


@dataclass(frozen=True)
class Options:
    """A request's checked options, of which `option_table.OPTIONS` has the meaning and limits.

    The model's defaults are included: the record holds everything that decides tokens.

    read: the fields of a `step.TextTask`, if the request is a text task.
    """

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

    def to_json(self) -> str:
        """The options that differ from the defaults above: an older orchestrator reads those."""
        defaults = Options().__dict__
        return json.dumps({n: value for n, value in self.__dict__.items() if value != defaults[n]})

    @classmethod
    def from_json(cls, text: str | bytes) -> Options:
        """Options of a record.

        Raises:
            IncompatibleVersion: the request uses options that this version does not know.
        """
        options = {name: _tuples(value) for name, value in json.loads(text).items()}
        if unknown := options.keys() - {field.name for field in fields(cls)}:
            raise IncompatibleVersion(
                f"{', '.join(sorted(unknown))}: unknown to the orchestrator, which is older than "
                "the client; leave it out, or upgrade the orchestrator"
            )
        return cls(**options)


def _tuples(value: Any) -> Any:
    """JSON's lists to tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


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
        }

    @classmethod
    def from_fields(cls, request_id: str, fields: dict[bytes, bytes]) -> Record:
        return cls(
            id=request_id,
            prompt=tuple(codec.decode(fields[b"prompt"]).tolist()),
            options=Options.from_json(fields[b"options"]),
            created=float(fields[b"created"]),
            deadline=float(fields[b"deadline"]),
            state=fields[b"state"].decode(),
            emitted=int(fields[b"emitted"]),
            arrival=int(fields[b"arrival"]),
            cancelled=b"cancel" in fields,
            model=fields.get(b"model", b"").decode(),
            end=json.loads(fields[b"end"]) if b"end" in fields else None,
            priority=int(fields.get(b"priority", 0)),
            started_at=float(fields.get(b"started_at", 0)),
            first_token_at=float(fields.get(b"first_token_at", 0)),
            last_token_at=float(fields.get(b"last_token_at", 0)),
            sample_group=fields.get(b"family", b"").decode(),
        )


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
        logprob, top = json.loads(text)
        return cls(logprob, _tuples(top))


@dataclass(frozen=True)
class Token:
    """One token of an answer; `text` is the text that it completes, often empty."""

    index: int
    id: int
    text: str
    logprobs: Logprobs | None = None  # if requested

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> Token:
        logprobs = Logprobs.from_json(fields[b"l"]) if b"l" in fields else None
        return cls(int(fields[b"i"]), int(fields[b"t"]), fields[b"p"].decode(), logprobs)


@dataclass(frozen=True)
class End:
    """How a request ended: a finish reason, or an error's class name and message."""

    text: str = ""  # text that was held back until the end
    finish_reason: str = ""
    error: str = ""
    message: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)  # embedding, predictions, labels or beams

    def to_json(self) -> str:
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str | bytes) -> End:
        """The end; fields that a later version has added are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})
