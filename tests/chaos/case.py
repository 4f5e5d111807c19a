"""One prompt of the load, its options, and how long its clients wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

GRACE_S = 20.0  # a client that waits this long after a request's deadline hangs
RETRY_S = 0.2


@dataclass(frozen=True)
class Case:
    """One prompt and its options; equal cases have equal answers."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = True
    num_beams: int = 1

    @property
    def options(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "prompt"}


class Answer(NamedTuple):
    """What a case has to give."""

    tokens: list[int]
    text: str
