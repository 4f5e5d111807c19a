"""A model's chat template: renders a conversation to the text of a prompt.

A template is a Jinja program from the checkpoint, so it runs in Jinja's sandbox. Knows no
tokenizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Sized
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from skynet.errors import BadRequest

MAX_CHARACTERS = 4_000_000  # as of a prompt
MAX_BITS = 4096
LONG_NUMBER = re.compile(r"\d{5}")
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One model's template, and the special tokens that it names (`bos_token`)."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)

    @cached_property
    def _template(self) -> jinja2.Template:
        return _environment().from_string(self._source)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as text, up to the beginning of the assistant's next answer.

        Raises:
            BadRequest: a message is not {"role": ..., "content": ...}, or the template refuses
                the messages.
        """
        checked = check_messages(messages)
        try:
            return self._template.render(
                messages=checked,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as error:  # a template may raise anything
            raise BadRequest(
                f"messages: the model's chat template refuses them: {error}"
            ) from error


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plain copies of the messages: of JSON's types only, so that a template meets no others.

    Raises:
        BadRequest: not a list of objects with a text `role` and `content`; names the message.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise BadRequest("messages: expected a list of at least one {role, content}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise BadRequest(f"messages[{index}]: expected {{role, content}}, got {kind}")
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                kind = type(message.get(field)).__name__
                raise BadRequest(f"messages[{index}].{field}: expected text, got {kind}")
    return [_plain(index, message) for index, message in enumerate(messages)]


def _plain(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without fields that are None, and with the reasoning under each name that is read."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(message)))
    except (TypeError, ValueError) as error:
        raise BadRequest(f"messages[{index}]: not of JSON's types: {error}") from error
    copy = {name: value for name, value in copy.items() if value is not None}
    reasoning = next((copy[name] for name in REASONING if name in copy), None)
    if reasoning is None:
        return copy
    return {"thinking": reasoning, **copy, "reasoning_content": reasoning}


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a short template cannot make a huge text or number either."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Raises SecurityError if the result may be larger than any prompt."""
        if operator == "*":
            sizes = [len(side) if isinstance(side, Sized) else side for side in (left, right)]
            if sizes != [left, right] and sizes[0] * sizes[1] > MAX_CHARACTERS:
                raise SecurityError(f"a text or list of {sizes[0]} times {sizes[1]} items")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > MAX_BITS:
                raise SecurityError(f"a power with an exponent of {right}")
        elif operator == "%" and isinstance(left, str) and LONG_NUMBER.search(left):
            raise SecurityError(f"a format with a large width: {left!r:.80}")
        return super().call_binop(context, operator, left, right)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment of Transformers' apply_chat_template, in a sandbox."""
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlocks]
    )
    del environment.globals["lipsum"]  # as much text as one asks for
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # Restricted, as in Transformers: the type itself and names of Python's internals stay out of
    # a template's reach.
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class _Dict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a field may be called `self`
        fields = dict(*args[1:], **kwargs)
        for name in fields:
            _check_field(name)
        Namespace.__init__(args[0], fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_field(name)
        super().__setitem__(name, value)


def _check_field(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template cannot have the field {name!r}")


class GenerationBlocks(Extension):
    """`{% generation %}` marks the assistant's text for training; only its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's built-in filter escapes HTML, which Transformers' does not.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
