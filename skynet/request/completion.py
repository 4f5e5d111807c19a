"""The complete answer to a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Completion:
    """The complete answer to a request.

    token_ids: the generated tokens.
    finish_reason: `stop` or `length`.
    timings: `first_token_s` and `total_s` since submission, `decode_tokens_per_s` after the first
        token, `queued_s` before the first step.
    logprobs: if requested, for each token {"logprob": ..., "top": [[token id, logprob], ...]}, of
        the model's distribution, likeliest first.
    prompt_logprobs: if requested, None for the prompt's first token, and for each other one the
        same as in `logprobs`.
    beams: of a beam search, its hypotheses, best first: {"text": ..., "token_ids": [...],
        "score": sum of log-probabilities / length ** length_penalty}. The first is the answer.
    embedding: of task `embed`, a number for each hidden dimension.
    predictions: of task `fill-mask`, for each mask the likeliest tokens: token_id, token, score.
    labels: of task `classify`: label, score; best first.
    score: of task `rerank`: how well the pair's second text answers the first. Text tasks have no
        text.
    cached_tokens: of the prompt, that were not computed: an earlier request began with the same.
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
    cached_tokens: int = 0
    prompt_logprobs: list[dict[str, Any] | None] = field(default_factory=list)
    score: float | None = None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Completion:
        """From Celery's result; fields that a later version has added are left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in result.items() if name in known})
