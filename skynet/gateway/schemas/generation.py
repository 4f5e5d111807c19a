"""The fields of chats and completions that decide how tokens are chosen, as engine options."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from skynet.gateway.schemas.body import Body, Texts, refuse
from skynet.request.option_table import KNOWN

MAX_CHOICES = 16
MIN_TEMPERATURE = 1e-3  # sampling so cold takes the likeliest token
MIN_TOP_P = 1e-9
SERVICE_TIERS = {"priority": 8, "flex": 1}

# Engine options that a body may have under their own names, beside OpenAI's.
PASSED = frozenset(KNOWN) - {
    "do_sample",
    "logprobs",
    "max_tokens",
    "prompt_logprobs",
    "structured_outputs",
    "source_language",
    "target_language",
}


class StreamOptions(BaseModel):
    """include_usage: a last chunk with the usage. continuous_usage_stats: usage in each chunk."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @field_validator("include_usage", "continuous_usage_stats", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        return False if value is None else value


class GenerationBody(Body):
    """Of /v1/chat/completions and /v1/completions. Other options of `submit_prompt` have their own
    names: repetition_penalty, no_repeat_ngram_size, bad_words, ..."""

    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: str | Texts | None = None
    min_tokens: int | None = Field(None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = Field(None, ge=0, le=9)
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    timeout: float | None = Field(None, gt=0, le=86_400)

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    def options(self) -> dict[str, Any]:
        """Arguments of `submit_prompt`, but for the tokens' limit, logprobs and structure."""
        self._check()
        options = {name: value for name, value in self.extras().items() if name in PASSED}
        options |= self._sampling()
        if self.seed is not None:
            options["seed"] = self.seed % 2**64
        if self.stop:
            options["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        if self.min_tokens:
            options["min_new_tokens"] = self.min_tokens
        priority = SERVICE_TIERS.get(self.service_tier or "", self.priority)
        if priority is not None:
            options["priority"] = priority if self.priority is None else self.priority
        if self.timeout is not None:
            options["timeout"] = self.timeout
        return options

    def _check(self) -> None:
        if self.stream_options is not None and not self.streams:
            raise refuse("stream_options", "only with stream true", "invalid_value")
        if (self.extras().get("num_beams") or 1) != 1 and self.streams:
            raise refuse("num_beams", "the answer of a beam search comes at its end: stream false")

    def _sampling(self) -> dict[str, Any]:
        """How tokens are drawn. OpenAI's default is to sample; temperature 0 is exact."""
        if self.temperature is not None and self.temperature < MIN_TEMPERATURE:
            return {"temperature": 0.0}
        if (self.extras().get("num_beams") or 1) != 1 and self.temperature is None:
            return {}
        sampling: dict[str, Any] = {"do_sample": True}
        if self.temperature is not None:
            sampling["temperature"] = self.temperature
        if self.top_p is not None:
            sampling["top_p"] = max(MIN_TOP_P, self.top_p)
        if self.top_k is not None:
            sampling["top_k"] = max(0, self.top_k)
        if self.min_p is not None:
            sampling["min_p"] = self.min_p
        return sampling
