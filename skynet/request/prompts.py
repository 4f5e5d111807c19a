"""What may be a prompt, and its token ids. Knows no Redis: the tokenizer is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skynet.errors import BadRequest

if TYPE_CHECKING:
    from skynet.tokenizer.text import Text

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]

MAX_PROMPT_CHARACTERS = 4_000_000


def token_ids(
    prompt: Prompt,
    text: Text,
    raw: bool,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
) -> list[int]:
    """The prompt as token ids: text, chat messages, or ids as they are.

    raw: False puts a text into the model's chat template, as the user's message, if there is one.
    source_language, target_language: codes, of a text to translate; see `Languages.of_prompt`.

    Raises:
        BadRequest: empty, too long, of no such type, a language that the model does not know, or
            the model has no tokenizer or template.
    """
    if isinstance(prompt, str):
        check_text(prompt)
        if not raw and text.has_chat_template:
            return text.chat([{"role": "user", "content": prompt}])
        ids = text.languages.of_prompt(text.encode(prompt), source_language, target_language)
        if not ids:
            raise BadRequest("prompt: it has no tokens")
        return ids
    if source_language is not None:
        raise BadRequest(f"source_language {source_language!r:.80}: only a text is in a language")
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise BadRequest(
            f"prompt: expected text, chat messages or token ids, got {type(prompt).__name__}"
        )
    if not prompt:
        raise BadRequest("prompt: it is empty")
    if isinstance(prompt[0], Mapping):
        length = sum(len(str(m.get("content", ""))) for m in prompt if isinstance(m, Mapping))
        if length > MAX_PROMPT_CHARACTERS:
            raise BadRequest(f"messages: {length} characters, at most {MAX_PROMPT_CHARACTERS}")
        return text.chat(prompt)  # type: ignore[arg-type]
    return list(prompt)  # type: ignore[arg-type]


def check_text(prompt: str) -> None:
    """Raise BadRequest if a prompt is empty or far too long for any model."""
    if not prompt.strip():
        raise BadRequest("prompt: it is empty")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise BadRequest(f"prompt: {len(prompt)} characters, at most {MAX_PROMPT_CHARACTERS}")


def check_token_ids(ids: Sequence[Any], vocab_size: int) -> None:
    """Raise BadRequest unless all are ids of this vocabulary."""
    for position, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise BadRequest(
                f"prompt: token {token!r:.40} at position {position} is none of the vocabulary's "
                f"{vocab_size} (0 to {vocab_size - 1})"
            )
