"""What a chat template is given beside the messages, under Transformers' names."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from skynet.errors import BadRequest

MAX_CHARACTERS = 4_000_000  # as of a prompt
MAX_ITEMS = 1024
# Names of a template that are not free for `chat_template_kwargs`.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


@dataclass(frozen=True)
class ChatOptions:
    """The options of `tokenizer.apply_chat_template`.

    tools: functions that the model may call, as OpenAI's `tools`.
    documents: texts to answer from, {"title": ..., "text": ...}.
    add_generation_prompt: end with the beginning of the assistant's answer; None: unless the
        last message is continued.
    continue_final_message: the answer continues the last message.
    chat_template_kwargs: further variables of the template, such as enable_thinking.
    """

    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def taken(cls, options: MutableMapping[str, Any]) -> Self:
        """Removes these options from a request's options, and checks them.

        Raises:
            BadRequest: names the option and what is wrong with it.
        """
        given = {each.name: options.pop(each.name, None) for each in fields(cls)}
        return cls.checked(**given)

    @classmethod
    def checked(
        cls,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: Any = None,
        continue_final_message: Any = None,
        chat_template_kwargs: Any = None,
    ) -> Self:
        """
        Raises:
            BadRequest: names the option and what is wrong with it.
        """
        flags = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        for name, value in flags.items():
            if value is not None and not isinstance(value, bool):
                raise BadRequest(f"{name} {value!r:.80}: True or False")
        if add_generation_prompt and continue_final_message:
            raise BadRequest(
                "continue_final_message with add_generation_prompt: the answer continues the last "
                "message or begins a new one; give one of them"
            )
        return cls(
            _objects("tools", tools),
            _objects("documents", documents),
            **flags,
            chat_template_kwargs=_template_kwargs(chat_template_kwargs),
        )

    @property
    def given(self) -> list[str]:
        """The names of the options that are set."""
        return [each.name for each in fields(self) if getattr(self, each.name) not in (None, {})]

    @property
    def starts_answer(self) -> bool:
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt


CHAT_OPTIONS = tuple(each.name for each in fields(ChatOptions))


def plain(name: str, value: Any) -> Any:
    """A copy of JSON's types only, so that a template meets no others.

    Raises:
        BadRequest: of other types, nested too deeply or too long; names the value.
    """
    try:
        content = json.dumps(value, ensure_ascii=False)
        copy = json.loads(content) if len(content) <= MAX_CHARACTERS else None
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"{name}: not of JSON's types: {error}") from error
    if len(content) > MAX_CHARACTERS:
        raise BadRequest(f"{name}: {len(content)} characters, at most {MAX_CHARACTERS}")
    return copy


def _objects(name: str, value: Any) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise BadRequest(f"{name}: expected a list of objects, got {type(value).__name__}")
    if len(value) > MAX_ITEMS:
        raise BadRequest(f"{name}: {len(value)} items, at most {MAX_ITEMS}")
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise BadRequest(f"{name}[{index}]: expected an object, got {type(item).__name__}")
    copies: list[dict[str, Any]] = plain(name, [dict(item) for item in value])
    return copies


def _template_kwargs(value: Any) -> dict[str, Any]:
    name = "chat_template_kwargs"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest(f"{name}: expected an object, got {type(value).__name__}")
    if len(value) > MAX_ITEMS:
        raise BadRequest(f"{name}: {len(value)} items, at most {MAX_ITEMS}")
    for key in value:
        if not isinstance(key, str) or not key.isidentifier() or key in RESERVED:
            raise BadRequest(
                f"{name}: {key!r:.80} is not the name of a variable that a request can set"
            )
    copy: dict[str, Any] = plain(name, dict(value))
    return copy
