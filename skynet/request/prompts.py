"""Prompts to token ids. Knows no Redis: the tokenizer is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skynet.errors import BadRequest
from skynet.request.option_values import is_integer, shown

if TYPE_CHECKING:
    from skynet.tokenizer.chat_options import ChatOptions
    from skynet.tokenizer.text import Text


@dataclass(frozen=True)
class EncodedText:
    """A text, or a pair of texts, of a text task as token ids.

    types: the token type of each; (): all 0.
    skip: leading tokens, of a prompt, that pooling leaves out.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    skip: int = 0


Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int] | tuple[str, str] | EncodedText

MAX_PROMPT_CHARACTERS = 4_000_000


def token_ids(
    prompt: Prompt,
    text: Text,
    raw: bool,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    chat: ChatOptions | None = None,
) -> list[int]:
    """The token ids of a prompt: text, chat messages, or token ids, which are not checked.

    raw: False puts a text into the model's chat template, if it has one, as the user's message.
    source_language, target_language: codes, of a text to translate; see `Languages.of_prompt`.
    chat: of chat messages, or of a text in the chat template.

    Raises:
        BadRequest: empty, too long, of another type, in an unknown language, or the model lacks
            the tokenizer or chat template.
    """
    if isinstance(prompt, str):
        check_text(prompt)
        is_translation = source_language is not None or target_language is not None
        # Models that translate were trained on texts alone, not on texts in a chat.
        if not raw and text.has_chat_template and not is_translation:
            return text.chat([{"role": "user", "content": prompt}], chat)
        _check_no_chat(chat)
        ids = text.languages.of_prompt(text.encode(prompt), source_language, target_language)
        return some(ids)
    if source_language is not None:
        raise BadRequest(f"source_language {shown(source_language)}: only texts have a language")
    if target_language is not None and text.languages.in_prompt:
        raise BadRequest(
            f"target_language {shown(target_language)}: a token before a text names it in this "
            "model's prompts; put it before the ids"
        )
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise BadRequest(
            f"prompt: expected text, chat messages or token ids, got {type(prompt).__name__}"
        )
    if not prompt:
        raise BadRequest("prompt: empty")
    if isinstance(prompt[0], Mapping):
        length = sum(len(str(m.get("content", ""))) for m in prompt if isinstance(m, Mapping))
        if length > MAX_PROMPT_CHARACTERS:
            raise BadRequest(f"messages: {length} characters, at most {MAX_PROMPT_CHARACTERS}")
        return text.chat(prompt, chat)  # type: ignore[arg-type]
    _check_no_chat(chat)
    return list(prompt)  # type: ignore[arg-type]


def _check_no_chat(chat: ChatOptions | None) -> None:
    if chat is not None and chat.given:
        raise BadRequest(
            f"{chat.given[0]}: only chat messages, and texts with raw=False, have it; leave it out"
        )


def some(ids: list[int]) -> list[int]:
    if not ids:
        raise BadRequest("prompt: the tokenizer makes no tokens of it")
    return ids


def check_text(prompt: str) -> None:
    """Raise BadRequest if a prompt is empty or too long for any model.

    White space alone is a prompt, as in Transformers; whether it makes tokens, the tokenizer says.
    """
    if not prompt:
        raise BadRequest("prompt: empty")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise BadRequest(f"prompt: {len(prompt)} characters, at most {MAX_PROMPT_CHARACTERS}")


def check_token_ids(ids: Sequence[Any], vocab_size: int) -> list[int]:
    """The ids; raises BadRequest unless all are in a vocabulary of this size."""
    for position, token in enumerate(ids):
        if not is_integer(token) or not 0 <= token < vocab_size:
            raise BadRequest(
                f"prompt: token {shown(token)} at position {position} is not in the vocabulary: 0 "
                f"to {vocab_size - 1}"
            )
    return [int(token) for token in ids]
