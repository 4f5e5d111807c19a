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
from jinja2 import meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from skynet.errors import BadRequest
from skynet.tokenizer.chat_messages import MessageForm, chat_messages
from skynet.tokenizer.chat_options import MAX_CHARACTERS, ChatOptions

MAX_BITS = 4096
LONG_NUMBER = re.compile(r"\d{5}")
TOOL_USE = "tool_use"  # Transformers' name of the template for requests with tools
FINAL_MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # the space tells whether the template strips messages
PROBE = "probe0content"
PYTHON_FORM = re.compile(r"""["']type["']""")  # a list of parts that is printed as it is


class ChatTemplate:
    """One model's template, or its templates by name, and the special tokens (`bos_token`)."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        named: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            source: the default template.
            named: others, of which `tool_use` is used with tools.
        """
        self._default = _Template(source, special_tokens)
        tool_use = (named or {}).get(TOOL_USE)
        self._tool_use = self._default if tool_use is None else _Template(tool_use, special_tokens)

    @property
    def variables(self) -> frozenset[str]:
        """The names that the templates read: tools, documents, enable_thinking, ..."""
        return self._default.variables | self._tool_use.variables

    def render(
        self, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None
    ) -> str:
        """The conversation as text, up to the beginning of the assistant's next answer.

        Raises:
            BadRequest: a message is not {"role": ..., "content": ...}, the template refuses the
                messages, or does not read an option that is given.
        """
        options = options or ChatOptions()
        template = self._default if options.tools is None else self._tool_use
        return template.render(messages, options)


class _Template:
    """One template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)

    @cached_property
    def _template(self) -> jinja2.Template:
        return _environment().from_string(self._source)

    @cached_property
    def variables(self) -> frozenset[str]:
        try:
            return frozenset(meta.find_undeclared_variables(_environment().parse(self._source)))
        except jinja2.TemplateError:  # `render` says so
            return frozenset()

    @cached_property
    def _form(self) -> MessageForm:
        texts, parts = self._shows(PROBE), self._shows([{"type": "text", "text": PROBE}])
        return MessageForm(parts, texts or not parts, "developer" in self._source)

    def _shows(self, content: Any) -> bool:
        """Whether the template renders a user's content of this form, not its Python form."""
        try:
            text = self._render([{"role": "user", "content": content}], ChatOptions())
        except Exception:  # a template may raise anything
            return False
        return PROBE in text and not PYTHON_FORM.search(text)

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> str:
        try:
            form = self._form if self._template else MessageForm()
        except Exception as error:  # of Jinja's compiler
            raise _refused(error) from error
        checked = chat_messages(messages, form)
        self._check_options(options)
        final = _open_ended(checked) if options.continue_final_message else None
        try:
            text = self._render(checked, options)
        except Exception as error:  # a template may raise anything
            raise _refused(error) from error
        if len(text) > MAX_CHARACTERS:
            raise BadRequest(f"messages: {len(text)} characters, at most {MAX_CHARACTERS}")
        return text if final is None else _cut_after(final, text)

    def _render(self, messages: list[dict[str, Any]], options: ChatOptions) -> str:
        return self._template.render(
            messages=messages,
            tools=options.tools,
            documents=options.documents,
            add_generation_prompt=options.starts_answer,
            **{**self._special_tokens, **options.chat_template_kwargs},
        )

    def _check_options(self, options: ChatOptions) -> None:
        """Refuse what the template would ignore."""
        given = [name for name in ("tools", "documents") if getattr(options, name)]
        for name in (*given, *options.chat_template_kwargs):
            if name not in self.variables:
                where = name if name in given else f"chat_template_kwargs.{name}"
                raise BadRequest(
                    f"{where}: the model's chat template does not read {name}; leave it out"
                )


def _refused(error: Exception) -> BadRequest:
    return BadRequest(f"messages: the model's chat template refuses them: {error}")


def _open_ended(messages: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's text, as Transformers does; returns the text."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        messages[-1]["content"] = content + FINAL_MARK
        return content
    for part in reversed(content or ()):
        text: str = part["text"]
        part["text"] = text + FINAL_MARK
        return text
    raise BadRequest("continue_final_message: the last message has no content to continue")


def _cut_after(final: str, text: str) -> str:
    """The text up to the mark: without what the template puts after the last message."""
    mark = FINAL_MARK.strip()
    if final.strip() not in text or mark not in text:
        raise BadRequest(
            "continue_final_message: the model's chat template leaves out or changes the last "
            "message, so that it cannot be continued"
        )
    at = text.rindex(mark)
    if text[at : at + len(FINAL_MARK)] == FINAL_MARK:
        return text[:at]
    return text[:at].rstrip()  # the template strips messages


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
