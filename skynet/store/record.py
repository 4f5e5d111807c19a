"""What is kept of a request: what was asked, each token, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skynet import wire


@dataclass(frozen=True)
class Options:
    """How to answer: the names are Hugging Face's, `max_tokens` and `stop` are OpenAI's."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    read: dict[str, Any] | None = None  # what the text is read for, instead: a step.Read's fields


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

    def fields(self) -> dict[str, str | bytes | int]:
        """What is written when the request is made; scripts write the rest."""
        return {
            "prompt": wire.encode(np.asarray(self.prompt, dtype=np.int32)),
            "options": json.dumps(self.options.__dict__),
            "created": repr(self.created),
            "deadline": repr(self.deadline),
            "state": self.state,
            "emitted": self.emitted,
            "model": self.model,
            "priority": self.priority,
        }

    @classmethod
    def from_fields(cls, request_id: str, found: dict[bytes, bytes]) -> Record:
        options = json.loads(found[b"options"])
        options["stop"] = tuple(options["stop"])
        return cls(
            id=request_id,
            prompt=tuple(wire.decode(found[b"prompt"]).tolist()),
            options=Options(**options),
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
        )


@dataclass(frozen=True)
class Token:
    """One token of an answer; `text` is what it adds to the text, often empty or partial."""

    index: int
    id: int
    text: str

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> Token:
        return cls(int(fields[b"i"]), int(fields[b"t"]), fields[b"p"].decode())


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
