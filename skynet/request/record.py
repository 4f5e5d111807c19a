"""What is kept of a request: what was asked, each token, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skynet.wire import codec


@dataclass(frozen=True)
class Options:
    """How to answer: the names are Hugging Face's; `max_tokens`, `stop`, `logprobs` are OpenAI's.

    What the model's generation config sets is in here: all that decides tokens is in the record.
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
    read: dict[str, Any] | None = (
        None  # what the text is read for, instead: a step.TextTask's fields
    )
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize_logits: bool = False
    decoder_start_token_id: int | None = None  # of an encoder-decoder: its answer begins after it

    def to_json(self) -> str:
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str | bytes) -> Options:
        """Options that a record of an earlier version lacks have their defaults."""
        return cls(**{name: _tuples(value) for name, value in json.loads(text).items()})


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Record:
    """One request as it was accepted. Times are seconds since 1970 by Redis's clock, 0: not yet."""

    id: str
    prompt: tuple[int, ...]
    options: Options
    created: float
    deadline: float
    state: str = "waiting"  # waiting, running, done
    emitted: int = 0
    arrival: int = 0
    cancelled: bool = False
    model: str = ""  # the digest its tokens belong to
    end: dict[str, Any] | None = None
    priority: int = 0  # 9 goes first
    started_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    sample_group: str = ""  # the samples of one prompt have the first one's id here

    def fields(self) -> dict[str, str | bytes | int]:
        """What is written when the request is made; scripts write the rest."""
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
    def from_fields(cls, request_id: str, found: dict[bytes, bytes]) -> Record:
        return cls(
            id=request_id,
            prompt=tuple(codec.decode(found[b"prompt"]).tolist()),
            options=Options.from_json(found[b"options"]),
            created=float(found[b"created"]),
            deadline=float(found[b"deadline"]),
            state=found[b"state"].decode(),
            emitted=int(found[b"emitted"]),
            arrival=int(found[b"arrival"]),
            cancelled=b"cancel" in found,
            model=found.get(b"model", b"").decode(),
            end=json.loads(found[b"end"]) if b"end" in found else None,
            priority=int(found.get(b"priority", 0)),
            started_at=float(found.get(b"started_at", 0)),
            first_token_at=float(found.get(b"first_token_at", 0)),
            last_token_at=float(found.get(b"last_token_at", 0)),
            sample_group=found.get(b"family", b"").decode(),
        )


@dataclass(frozen=True)
class Logprobs:
    """Natural logs of probabilities, of the model's own distribution: before temperature, filters,
    penalties and bans.

    logprob: of the token that was chosen.
    top: (token id, log-probability) of the likeliest, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> str:
        return json.dumps([self.logprob, self.top])

    def as_dict(self) -> dict[str, Any]:
        """As `Completion.logprobs` and JSON have it."""
        return {"logprob": self.logprob, "top": [list(pair) for pair in self.top]}

    @classmethod
    def from_json(cls, text: str | bytes) -> Logprobs:
        logprob, top = json.loads(text)
        return cls(logprob, _tuples(top))


@dataclass(frozen=True)
class Token:
    """One token of an answer; `text` is what it adds to the text, often empty or partial."""

    index: int
    id: int
    text: str
    logprobs: Logprobs | None = None  # if they were asked for

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> Token:
        logprobs = Logprobs.from_json(fields[b"l"]) if b"l" in fields else None
        return cls(int(fields[b"i"]), int(fields[b"t"]), fields[b"p"].decode(), logprobs)


@dataclass(frozen=True)
class End:
    """How a request ended: a finish reason, or an error's class name and message."""

    text: str = ""  # what was still held back
    finish_reason: str = ""
    error: str = ""
    message: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)  # an embedding, predictions or labels

    def to_json(self) -> str:
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str | bytes) -> End:
        return cls(**json.loads(text))
