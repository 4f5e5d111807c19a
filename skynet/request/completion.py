"""An answer, whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Completion:
    """An answer. `token_ids` are the generated ones only; `finish_reason` is `stop` or `length`.

    timings: `first_token_s` and `total_s` since submission, `decode_tokens_per_s` after the first
    token, `queued_s` before the first step.
    logprobs: if they were asked for, one a token: {"logprob": of the token, "top": [[token id,
        logprob], ...], best first}, of the model's own distribution.
    beams: of a beam search, the best hypotheses, best first: {"text": ..., "token_ids": [...],
        "score": sum of log-probabilities / length ** length_penalty}. The first is the answer.
    embedding, predictions, labels: of a text that was read instead, by task `embed` (as many
        numbers as the hidden states have), `fill-mask` (for each mask the likeliest tokens:
        token_id, token, score) and `classify` (label, score), best first. There is no text then.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: str
    timings: dict[str, float] = field(default_factory=dict)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    embedding: list[float] = field(default_factory=list)
    predictions: list[list[dict[str, Any]]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    beams: list[dict[str, Any]] = field(default_factory=list)
