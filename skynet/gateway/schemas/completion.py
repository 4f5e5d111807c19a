"""The body of /v1/completions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from skynet.gateway.schemas.body import Prompts, refuse
from skynet.gateway.schemas.generation import GenerationBody
from skynet.gateway.schemas.structure import ResponseFormat, structured_outputs

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 1024


class CompletionBody(GenerationBody):
    """prompt: a text, token ids, or a list of either."""

    prompt: Prompts = Field(max_length=4_000_000)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None

    @property
    def limit(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise refuse("prompt", "empty", "invalid_value")
        if isinstance(prompt[0], int):
            return [prompt]
        if len(prompt) > MAX_PROMPTS:
            raise refuse("prompt", f"{len(prompt)} prompts, at most {MAX_PROMPTS}", "invalid_value")
        return list(prompt)

    @property
    def scored_prompt(self) -> int | None:
        """How many of the likeliest tokens are reported for each token of the prompt; None: its
        log-probabilities are not asked for."""
        return self.logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs

    def structure(self) -> dict[str, Any] | None:
        """The option `structured_outputs`; None: free text."""
        return structured_outputs(self.response_format, self.structured_outputs)

    def _check(self) -> None:
        super()._check()
        if self.streams and self.echo and self.logprobs is not None:
            raise refuse("echo", "with logprobs only without stream: they come at the end")
        if self.limit == 0 and not self.echo:
            raise refuse("max_tokens", "0 only with echo", "invalid_value")
