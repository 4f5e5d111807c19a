"""A response template in a form that keeps each region's text, for streaming.

Transformers' parser raises in the middle of a stream where a region's body is not what the template
says, and the text is lost. So the stream is cut by a template whose structured regions are plain
text, and a region that has ended is parsed by the model's own template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import regex
from transformers.utils.chat_parsing import parse_response
from transformers.utils.chat_parsing.response_templates import load_response_template

from skynet.errors import CheckpointError

CONTENT, REASONING, TOOL_CALLS = "content", "reasoning_content", "tool_calls"
REASONING_NAMES = frozenset((REASONING, "reasoning", "thinking"))
OPENED, CLOSED = "skynet_opened", "skynet_closed"
# Fed after an answer, so that its end closes every region; two characters that no text has.
END = "\ufdd0\uffff"

Call = tuple[str, str]  # name, arguments as JSON


class Regions:
    """One model's response template.

    cutting: the template that cuts a stream. opens_reasoning, closes_reasoning: the marks around
    reasoning, "" if they are no constants.
    """

    def __init__(self, template: Mapping[str, Any]) -> None:
        """
        Raises:
            CheckpointError: the template is not valid.
        """
        try:
            own = json.loads(json.dumps(template))
            self._own = load_response_template(own)
            fields = {name: _kept(name, field) for name, field in own["fields"].items()}
            self.cutting = load_response_template({**own, "defaults": {}, "fields": fields})
        except Exception as error:  # the library raises what its steps raise
            raise CheckpointError(f"the model's response_template is not valid: {error}") from error
        self.has_calls = TOOL_CALLS in fields
        reasoning: Any = next((own["fields"][n] for n in REASONING_NAMES & fields.keys()), {})
        self.opens_reasoning = _constant(reasoning.get("open"))
        self.closes_reasoning = _constant(reasoning.get("close"))
        calls = own["fields"].get(TOOL_CALLS, {})
        self.call_marks = _constant(calls.get("open")), _constant(calls.get("close"))

    def prefix(self, prompt: str) -> str:
        """The part of a prompt that belongs to the answer, or "" where that is not certain."""
        ends = [match.end() for match in self.cutting.start_anchor_re.finditer(prompt)]
        if ends:
            return prompt[ends[-1] :]
        opening = self.opens_reasoning
        return opening if opening and prompt.rstrip().endswith(opening.rstrip()) else ""

    def calls(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[Call] | None:
        """The tool calls of a region's text; None if it is malformed."""
        try:
            message = parse_response(text, self._own, prefix="", tools=[*tools])
            if str(message.get(CONTENT) or "").strip():
                return None
            return [_call(each) for each in _flat(message[TOOL_CALLS])] or None
        except Exception:  # the parsers of contents raise what they meet
            return None


def _kept(name: str, field: Mapping[str, Any]) -> dict[str, Any]:
    """A field whose value is its text, with the text of its marks if it is of tool calls."""
    opening, closing = _pattern(field, "open"), _pattern(field, "close")
    if name != TOOL_CALLS:
        marks = {key: field[key] for key in field if key.startswith(("open", "close"))}
        return {**marks, "content": "text", "repeats": True, "transform": "{content}"}
    kept = {"content": "text", "content_args": {"strip": False}, "repeats": True}
    closing = f"(?P<{CLOSED}>{'(?!)' if closing is None else closing}|{END})"
    if opening is None:
        transform = {"body": "{content}", CLOSED: f"{{{CLOSED}}}"}
        return {**kept, "close_pattern": closing, "transform": transform}
    return {
        **kept,
        "open_pattern": f"(?P<{OPENED}>{opening})",
        "close_pattern": closing,
        "transform": {OPENED: f"{{{OPENED}}}", "body": "{content}", CLOSED: f"{{{CLOSED}}}"},
    }


def region_text(value: Mapping[str, str]) -> str:
    """The text of a region of tool calls, as it was generated."""
    return value.get(OPENED, "") + value["body"] + value[CLOSED].removesuffix(END)


def _pattern(field: Mapping[str, Any], mark: str) -> str | None:
    pattern: str | None = field.get(f"{mark}_pattern")
    if pattern is not None or mark not in field:
        return pattern
    texts = [field[mark]] if isinstance(field[mark], str) else field[mark]
    return "|".join(regex.escape(text) for text in sorted(texts, key=len, reverse=True))


def _constant(mark: Any) -> str:
    return mark if isinstance(mark, str) else ""


def _flat(calls: Any) -> list[Any]:
    if not isinstance(calls, list):
        return [calls]
    return [call for item in calls for call in _flat(item)]


def _call(value: Mapping[str, Any]) -> Call:
    """Raises if the value is not a call."""
    function = value["function"]
    name = function["name"]
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("not a call")
    return name, as_json(arguments)


def as_json(value: Any) -> str:
    """JSON that can be written as UTF-8."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a pair of surrogates
        return json.dumps(value, allow_nan=False)
    return text
