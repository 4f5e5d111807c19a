"""How a chat's answers are parsed: by the response template of the model, or as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from skynet.gateway.clusters import Served
from skynet.gateway.parsing.deltas import Delta
from skynet.gateway.parsing.families import fallback_template
from skynet.gateway.parsing.tools import check_tools, forced_tools
from skynet.gateway.schemas.body import refuse
from skynet.gateway.schemas.chat import ChatBody

if TYPE_CHECKING:
    from skynet.gateway.parsing.response_format import ResponseFormat

MAX_KEPT_TOOLS = 32 * 1024  # characters of JSON, with the request's annotations
TOOLS_INTRODUCTION = (
    "You can call these functions. A call is a JSON object with the fields name and arguments.\n"
)


class Parser(Protocol):
    """Takes one answer apart."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the last text was reasoning."""

    def feed(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


class PlainText:
    """The parser of models whose answers are content and nothing else."""

    in_reasoning = False

    def feed(self, text: str) -> list[Delta]:
        return [Delta(content=text)] if text else []

    def finish(self) -> list[Delta]:
        return []


@dataclass(frozen=True)
class AnswerForm:
    """Of one request.

    template: of the model, or its family; None: plain text, unless a call is forced.
    tools: those that may be called; none: text that looks like a call is content.
    tool_choice: OpenAI's.
    is_generic: the call that is forced is written as JSON, since the model has no form of its own.
    """

    template: Mapping[str, Any] | None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Any = None
    is_generic: bool = False

    @classmethod
    def of(cls, served: Served, body: ChatBody) -> AnswerForm:
        """The form of a body's answers.

        Raises:
            BadRequest, ApiError: its tools or their choice cannot work with this model.
        """
        plain = cls(_template_of(served), served.model.text.special_tokens)
        if not body.tools or body.tool_choice == "none":
            return plain
        check_tools(body.tools)
        forced = forced_tools(body.tools, body.tool_choice)
        if forced is None and body.structure() is not None:  # a call that is forced is no content
            raise refuse("response_format", "with tools only if tool_choice is none or required")
        has_calls = plain._format is not None and plain._format.has_calls
        if not has_calls and forced is None:
            raise refuse(
                "tools",
                f"how {served.name} writes a tool call is not known: with tool_choice required, or "
                "a named function, a call can be forced",
            )
        tokens = plain.special_tokens
        return cls(plain.template, tokens, body.tools, body.tool_choice, not has_calls)

    @classmethod
    def again(cls, served: Served, about: Mapping[str, Any]) -> AnswerForm:
        """The form of a request that is taken up again, from its annotations."""
        tools, is_generic = about.get("tools", ()), bool(about.get("is_generic"))
        tokens = served.model.text.special_tokens
        return cls(_template_of(served), tokens, tools, None, is_generic)

    def annotations(self) -> dict[str, Any]:
        """What `again` needs; the tools only if they are not too long to be kept."""
        kept = list(self.tools)
        if len(json.dumps(kept)) > MAX_KEPT_TOOLS:
            return {"is_generic": self.is_generic, "lost": "tools"}
        return {"tools": kept, "is_generic": self.is_generic}

    @property
    def keeps_special_tokens(self) -> bool:
        """Whether the parser has to see them."""
        return self._format is not None

    def described(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages, with the tools described in the system message if no template does it."""
        if not self.is_generic:
            return messages
        functions = [tool["function"] for tool in self.tools]
        text = TOOLS_INTRODUCTION + "\n".join(json.dumps(each) for each in functions)
        first = messages[0]
        if first.get("role") == "system" and isinstance(first.get("content"), str):
            return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
        return [{"role": "system", "content": text}, *messages]

    def grammar(self, body: ChatBody, prompt_text: str) -> dict[str, Any] | None:
        """The option `structured_outputs` of a call that is forced; None: none is."""
        if not self.tools or self._format is None:
            return None
        parallel = body.parallel_tool_calls is not False
        grammar = self._format.tool_grammar(self.tools, self.tool_choice, parallel, prompt_text)
        return None if grammar is None else {"grammar": grammar}

    def parser(self, prompt_text: str) -> Parser:
        """A parser of one answer."""
        return PlainText() if self._format is None else self._format.parser(prompt_text, self.tools)

    @cached_property
    def _format(self) -> ResponseFormat | None:
        if self.template is None and not self.is_generic:
            return None
        # Imports Transformers, which few requests need.
        from skynet.gateway.parsing.response_format import ResponseFormat

        if self.is_generic or self.template is None:
            return ResponseFormat.generic(self.special_tokens)
        return ResponseFormat(self.template, self.special_tokens)


def _template_of(served: Served) -> Mapping[str, Any] | None:
    text, arch = served.model.text, served.model.text_tasks.arch
    own = text.response_template
    return own or fallback_template(arch.model_type, text.chat_template or "")
