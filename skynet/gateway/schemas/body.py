"""What the bodies of all requests have in common: what is refused, and what is ignored.

A field that would change the answer and is not supported is refused by name. Other unknown fields
are ignored, and named in the answer's header `x-skynet-ignored`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from skynet.gateway.errors import ApiError


class FirstError(FailFast):
    """A list stops at its first wrong item: a million of them would be a million errors."""

    def __hash__(self) -> int:  # a part of a union needs one
        return hash(self.fail_fast)


Ids = Annotated[list[int], FirstError()]
Texts = Annotated[list[str], FirstError()]
Objects = Annotated[list[dict[str, Any]], FirstError()]
Prompts = str | Ids | Texts | Annotated[list[Ids], FirstError()]

IGNORED_HEADER = "x-skynet-ignored"
MAX_NAMED = 20
NO_HEADER = re.compile(r"[^ -~]")  # what a header cannot hold

# Accepted, without effect on the answer, and not worth a word.
HARMLESS = frozenset(
    {
        "add_special_tokens",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "stream_interval",
        "user",
        "verbosity",
    }
)
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {"best_of": (1,)}  # values that are not refused
REFUSED = {
    "audio": "audio is not supported",
    "best_of": "ask for n answers and choose among them",
    "ebnf": "send structured_outputs with grammar",
    "function_call": "send tool_choice",
    "functions": "send tools",
    "grammar": "send structured_outputs with grammar",
    "guided_choice": "send structured_outputs with choice",
    "guided_grammar": "send structured_outputs with grammar",
    "guided_json": "send structured_outputs with json, or response_format",
    "guided_regex": "send structured_outputs with regex",
    "json_schema": "send response_format",
    "max_tokens_per_doc": "documents are not cut: cut them before",
    "lora_request": "adapters are not supported",
    "prediction": "predicted outputs are not supported",
    "prompt_embeds": "prompts are texts or token ids",
    "regex": "send structured_outputs with regex",
    "suffix": "filling in before a suffix is not supported",
    "truncate_prompt_tokens": "prompts are not cut: cut them before",
    "use_beam_search": "send num_beams",
    "web_search_options": "web search is not supported",
}


class Body(BaseModel):
    """A request's JSON object. model: the name that clients have for it."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = Field(None, max_length=512)

    def extras(self) -> dict[str, Any]:
        """Fields that the schema does not have, and that are set."""
        given = self.model_extra or {}
        return {name: value for name, value in given.items() if value is not None}

    def ignored(self, known: frozenset[str] = frozenset()) -> list[str]:
        """The names of unknown fields.

        known: used elsewhere.

        Raises:
            ApiError: 400, a field that is refused by name.
        """
        unknown = []
        for name, value in self.extras().items():
            if name in REFUSED and value not in WITHOUT_EFFECT.get(name, (False, [], {}, "")):
                raise ApiError(
                    400,
                    f"{name}: {REFUSED[name]}",
                    code="unsupported_parameter",
                    param=name,
                )
            if name not in HARMLESS and name not in known and name not in REFUSED:
                unknown.append(name)
        return unknown


def ignored_header(names: list[str]) -> dict[str, str]:
    """The header that names ignored fields; {} if there are none."""
    shown = [NO_HEADER.sub("?", name[:40]) for name in names[:MAX_NAMED]]
    return {IGNORED_HEADER: ", ".join(shown)} if shown else {}


def refuse(param: str, why: str, code: str = "unsupported_value") -> ApiError:
    """The answer to a value that is not supported."""
    return ApiError(400, f"{param}: {why}", code=code, param=param)
