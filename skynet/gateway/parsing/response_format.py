"""How one model writes reasoning and tool calls: parsers of its answers, grammars of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from skynet.errors import BadRequest
from skynet.gateway.parsing.call_grammar import CallGrammar
from skynet.gateway.parsing.chat_parser import ChatParser
from skynet.gateway.parsing.families import (
    CALL_FORMS,
    GENERIC,
    THINKING,
    CallForm,
    fallback_template,
)
from skynet.gateway.parsing.parameters import with_types
from skynet.gateway.parsing.regions import Regions
from skynet.gateway.parsing.tools import Tool, check_tools, forced_tools

PROBE_NAME, PROBE_KEY, PROBE_VALUE = "probe_name", "probe_key", "probe value"


class ResponseFormat:
    """The format of one model; a model without one answers in plain text."""

    def __init__(
        self, template: Mapping[str, Any], special_tokens: Mapping[str, int] | None = None
    ) -> None:
        """
        Args:
            template: of `transformers.utils.chat_parsing`.
            special_tokens: text -> id, those that are no part of an answer's text.

        Raises:
            CheckpointError: the template is not valid.
        """
        self._regions = Regions(template)
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def of(
        cls,
        template: Mapping[str, Any] | None,
        model_type: str,
        chat_template: str = "",
        special_tokens: Mapping[str, int] | None = None,
    ) -> Self | None:
        """A model's format: its tokenizer's, else its family's, else None.

        chat_template: its source tells the family; without it, model_type does.
        """
        template = template or fallback_template(model_type, chat_template)
        return None if template is None else cls(template, special_tokens)

    @classmethod
    def generic(cls, special_tokens: Mapping[str, int] | None = None) -> Self:
        """One forced call as the whole answer, for any model: {"name": ..., "arguments": ...}."""
        return cls(GENERIC, special_tokens)

    @property
    def has_calls(self) -> bool:
        """Whether tool calls are parsed; others only split reasoning."""
        return self._regions.has_calls

    def parser(self, prompt_text: str, tools: Sequence[Tool]) -> ChatParser:
        """A parser of one answer.

        prompt_text: with special tokens. tools: of the request, none if `tool_choice` is "none".
        """
        form = self._form
        typed = with_types(tools) if form is not None and form.parameters else tools
        return ChatParser(self._regions, prompt_text, typed, self._special_tokens)

    def tool_grammar(
        self, tools: Sequence[Tool], tool_choice: Any, parallel: bool, prompt_text: str = ""
    ) -> str | None:
        """The grammar of the calls that `tool_choice` forces, in Lark; None if it forces none.

        parallel: more than one call is allowed; of a named tool there is one.
        prompt_text: where it has begun reasoning, the grammar lets that end first.

        Raises:
            BadRequest: a tool or the choice cannot work; names it.
        """
        check_tools(tools)
        forced = forced_tools(tools, tool_choice)
        if forced is None:
            return None
        form = self._form
        if form is None:
            raise BadRequest(
                "tool_choice: how this model writes a call is not known, so that no call can be "
                "forced; use auto or none"
            )
        for tool in forced:
            name = tool["function"]["name"]
            if not self._parses(form, name):
                raise BadRequest(
                    f"tools: the model cannot write a call of {name!r}; rename the tool"
                )
        repeats = parallel and tool_choice == "required" and self._parses(form, PROBE_NAME, 2)
        return CallGrammar(form, self._special_tokens).of(
            forced, self._reasoning_end(prompt_text), repeats
        )

    def _reasoning_end(self, prompt_text: str) -> str:
        if not ChatParser(self._regions, prompt_text, ()).in_reasoning:
            return ""
        end = self._regions.closes_reasoning
        if not end:
            raise BadRequest(
                "tool_choice: the prompt begins reasoning whose end is not known, so that no call "
                "can be forced; use auto or none"
            )
        return end

    @cached_property
    def _form(self) -> CallForm | None:
        """How the model writes a call: the form that its own template parses."""
        if not self.has_calls:
            return None
        return next((form for form in self._forms() if self._parses(form, PROBE_NAME)), None)

    def _forms(self) -> Iterator[CallForm]:
        yield from CALL_FORMS
        opening, closing = self._regions.call_marks
        if opening:
            for key in ("arguments", "parameters"):
                middle = f'", "{key}": '
                yield CallForm(f'{opening}{{"name": "', middle, f"}}{closing}")
                yield CallForm(
                    '{"name": "', middle, "}", first=f"{opening}[", between=", ", last=f"]{closing}"
                )

    def _parses(self, form: CallForm, name: str, count: int = 1) -> bool:
        arguments = f'{{"{PROBE_KEY}": "{PROBE_VALUE}"}}'
        call = name, arguments
        if form.parameters:
            arguments = f"<parameter={PROBE_KEY}>\n{PROBE_VALUE}\n</parameter>\n"
        return self._regions.calls(form.text(name, arguments, count), ()) == [call] * count


def split_reasoning(
    text: str, prompt_text: str = "", format: ResponseFormat | None = None
) -> tuple[str, str]:
    """Reasoning and content of a whole answer; the prompt may have begun the reasoning."""
    parser = (format or ResponseFormat(THINKING)).parser(prompt_text, ())
    deltas = [*parser.feed(text), *parser.finish()]
    return "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas)
