"""The grammar of forced tool calls, in Lark as llguidance reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import regex
from llguidance import LLMatcher

from skynet.errors import BadRequest
from skynet.gateway.parsing.families import CallForm
from skynet.gateway.parsing.parameters import raw_texts, types_of
from skynet.gateway.parsing.tools import Tool

MAX_CALLS = 16  # of one answer
MAX_CHARACTERS = 500_000
# As models were trained on `tojson`; free white space invites small models to write nothing else.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# A text up to the mark after it, without the end of the call.
RAW_TEXT = r"/([^<]|<[^\/]|<\/[^f])*/"


class CallGrammar:
    """Grammars of calls in one form, with a tokenizer's special tokens (text -> id)."""

    def __init__(self, form: CallForm, special_tokens: Mapping[str, int]) -> None:
        self._form, self._ids = form, special_tokens
        tokens = sorted(special_tokens, key=len, reverse=True)
        self._special = regex.compile(f"({'|'.join(map(regex.escape, tokens)) or '(?!)'})")

    def of(self, tools: Sequence[Tool], reasoning_end: str, repeats: bool) -> str:
        """The grammar of a call of one of the tools.

        reasoning_end: ends the reasoning that the prompt has begun; "" if it has not.
        repeats: of one call or more.

        Raises:
            BadRequest: a tool's schema is not supported, or too large; names it.
        """
        form, rules = self._form, []
        for number, tool in enumerate(tools):
            rules.append(self._call(number, tool["function"]))
        calls = "call"
        if repeats:
            between = self._text(form.between)
            calls += f" ({between} call){{0,{MAX_CALLS - 1}}}"
        start = f"{self._text(form.first)} {calls} {self._text(form.last)}"
        if reasoning_end:
            start = f"reasoning {self._text(chr(10) * 2)} {start}"
            rules.append(self._reasoning(reasoning_end))
        choices = " | ".join(f"call_{number}" for number in range(len(tools)))
        grammar = "\n".join([f"start: {start}", f"call: {choices}", *rules])
        if len(grammar) > MAX_CHARACTERS:
            raise BadRequest(f"tools: {len(grammar)} characters, at most {MAX_CHARACTERS}")
        return grammar

    def _reasoning(self, end: str) -> str:
        if end in self._ids:
            return f"reasoning: REASONING {self._text(end)}\nREASONING: /(.|\\n)*/"
        return f"reasoning[suffix={json.dumps(end)}]: /(.|\\n)*/"

    def _call(self, number: int, function: Mapping[str, Any]) -> str:
        form, name = self._form, function["name"]
        schema = {"type": "object", **(function.get("parameters") or {})}
        if "properties" in schema or "parameters" not in function:
            schema.setdefault("additionalProperties", False)
        where = f"the parameters of tool {name}"
        before, after = self._text(form.before + name + form.middle), self._text(form.after)
        if form.parameters:
            return f"call_{number}: {before} {self._parameters(number, schema, where, after)}"
        return f"call_{number}: {before} {_json(schema, where)} {after}"

    def _parameters(self, number: int, schema: Mapping[str, Any], where: str, after: str) -> str:
        """Arguments as marks, in the order of the schema."""
        parts, rules = [], []
        properties = schema.get("properties") or {}
        for index, (key, value) in enumerate(properties.items()):
            rule, begin = f"value_{number}_{index}", self._text(f"<parameter={key}>\n")
            texts, types = raw_texts(value, schema), types_of(value, schema)
            if texts:
                choices = " | ".join(json.dumps(text) for text in texts)
                body = f"{rule}: ({choices}) {json.dumps(chr(10) + '</parameter>')}"
            elif not types or "string" in types:
                body = f"{rule}[suffix={json.dumps(chr(10) + '</parameter>')}]: {RAW_TEXT}"
            else:
                definitions = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
                term = _json({**value, **definitions}, where)
                body = f"{rule}: {term} {json.dumps(chr(10) + '</parameter>')}"
            rules.append(body)
            part = f"({begin} {rule} {self._text(chr(10))})"
            parts.append(part if key in (schema.get("required") or ()) else f"{part}?")
        return "\n".join([" ".join([*parts, after]), *rules])

    def _text(self, text: str) -> str:
        """A constant text: special tokens by their id, the rest as strings."""
        terms = []
        for piece in self._special.split(text):
            if piece:
                terms.append(f"<[{self._ids[piece]}]>" if piece in self._ids else json.dumps(piece))
        return " ".join(terms)


def _json(schema: Mapping[str, Any], where: str) -> str:
    term = f"%json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}"
    if len(term) > MAX_CHARACTERS:
        raise BadRequest(f"tools: {where} have {len(term)} characters, at most {MAX_CHARACTERS}")
    error = LLMatcher.validate_grammar(f"start: {term}")
    if error:
        reason = error.partition("\n")[0]
        raise BadRequest(f"tools: {where} cannot be forced: {reason:.300}; use tool_choice auto")
    return term
