"""A model's text files: prompts and chats to token ids, token ids to text.

The files are those of `Checkpoint.text_files`, staged with the weights. Knows tokenizers, but
neither Transformers nor models nor Redis.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar

from skynet.errors import BadRequest, CheckpointError, SkynetError
from skynet.tokenizer.chat_options import ChatOptions
from skynet.tokenizer.chat_template import ChatTemplate
from skynet.tokenizer.cleanup import clean_up
from skynet.tokenizer.detokenizer import CleaningDetokenizer, Detokenizer
from skynet.tokenizer.fast_tokenizer import FastTokenizer
from skynet.tokenizer.languages import Languages
from skynet.tokenizer.staged_tokenizer import FILE, StagedTokenizer, read_staged_tokenizer

Pair = tuple[str, str]
Made = TypeVar("Made")


class Backend(Protocol):
    """A tokenizer.

    special_ids: tokens that add no text to an answer.
    """

    special_ids: frozenset[int]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a prompt; `add_special_tokens`: with those around it."""

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text within an answer."""

    def encode_for_embedding(self, text: str, max_tokens: int | None, lower: bool) -> list[int]:
        """Token ids of a prompt, lower-cased and truncated as sentence-transformers does.

        max_tokens: those around it included, which are never cut off.
        """

    def encode_pair(self, texts: Pair, max_tokens: int | None) -> tuple[list[int], list[int]]:
        """Token ids of two texts in one prompt, and their token types.

        max_tokens: the longer text is cut first.

        Raises:
            BadRequest: the tokenizer does not join texts.
        """

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of an answer, before the spaces before punctuation are removed."""

    def token_to_id(self, token: str) -> int | None: ...

    def has(self, token_id: int) -> bool:
        """Whether there is such a token; a model's vocabulary may be padded with others."""


class Text:
    """A model's tokenizer and chat template; a model may lack either."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """
        Args:
            files: file name -> content.

        Raises:
            CheckpointError: a file cannot be read; names it.
        """
        staged = read_staged_tokenizer(files)
        self.has_tokenizer = staged is not None
        self._tokenizer = None if staged is None else _backend(staged, files)
        self._staged = staged = staged or StagedTokenizer()
        self._chat_template = (
            None
            if staged.chat_template is None
            else ChatTemplate(staged.chat_template, staged.special_tokens, staged.chat_templates)
        )
        self.has_chat_template = self._chat_template is not None

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer as the `tokenizers` library reads it; None if it is no such tokenizer."""
        tokenizer = self._tokenizer
        return tokenizer.to_json() if isinstance(tokenizer, FastTokenizer) else None

    @property
    def has_fast_tokenizer(self) -> bool:
        """Whether the model's tokenizer is one of the `tokenizers` library."""
        return isinstance(self._tokenizer, FastTokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens around it included.

        Raises:
            BadRequest: the model has no tokenizer, or `text` is not valid Unicode.
        """
        tokenizer = self._require_tokenizer()
        return _split(text, lambda: tokenizer.encode(text, add_special_tokens=True))

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text within an answer: without special tokens around it."""
        tokenizer = self._require_tokenizer()
        return _split(text, lambda: tokenizer.encode_inside(text))

    def encode_for_embedding(
        self, text: str, max_tokens: int | None = None, lower: bool = False
    ) -> list[int]:
        """Token ids of a text to embed, as sentence-transformers splits it.

        Args:
            max_tokens: the text is cut to as many tokens, those around it included.
            lower: in lower case.
        """
        tokenizer = self._require_tokenizer()
        return _split(text, lambda: tokenizer.encode_for_embedding(text, max_tokens, lower))

    def encode_pair(
        self, texts: Pair, max_tokens: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Token ids of two texts in one prompt, special tokens included, and their token types.

        Types are empty if the tokenizer says that the model takes none.

        Args:
            max_tokens: the texts are cut to as many tokens, the longer one first.

        Raises:
            BadRequest: no tokenizer, or one that does not join texts.
        """
        tokenizer = self._require_tokenizer()
        if self._staged.pairs == "none":
            raise BadRequest("prompt: this model's tokenizer does not join two texts")
        joined = "".join(texts)  # both are checked at once
        ids, types = _split(joined, lambda: tokenizer.encode_pair(texts, max_tokens))
        return ids, types if self._staged.pairs == "typed" else []

    @property
    def max_tokens(self) -> int | None:
        """The longest text that the tokenizer is for."""
        return self._staged.model_max_length

    @cached_property
    def languages(self) -> Languages:
        """The tokenizer's language codes, for models that translate."""
        return Languages(self._staged.languages)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None
    ) -> list[int]:
        """Token ids of a conversation, up to the beginning of the assistant's next answer.

        Raises:
            BadRequest: as of `chat_text`.
        """
        return self.encode_rendered(self.chat_text(messages, options))

    def chat_text(
        self, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None
    ) -> str:
        """A conversation as the text of a prompt.

        Raises:
            BadRequest: no template; a message is not {"role": ..., "content": ...}; or the
                template refuses the messages, or does not read an option.
        """
        if self._chat_template is None:
            raise BadRequest("messages: this model has no chat template; send a prompt instead")
        return self._chat_template.render(messages, options)

    def encode_rendered(self, prompt: str) -> list[int]:
        """Token ids of a rendered conversation, which has the special tokens in it."""
        tokenizer = self._require_tokenizer()
        return _split(prompt, lambda: tokenizer.encode(prompt, add_special_tokens=False))

    @property
    def chat_variables(self) -> frozenset[str]:
        """The names that the chat template reads: tools, documents, enable_thinking, ..."""
        return frozenset() if self._chat_template is None else self._chat_template.variables

    @cached_property
    def response_template(self) -> dict[str, Any] | None:
        """How an answer is parsed: Transformers' `response_template`, if the model has one.

        Raises:
            CheckpointError: it is not a JSON object.
        """
        if self._staged.response_template is None:
            return None
        try:
            template = json.loads(self._staged.response_template)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{FILE}: response_template is not JSON: {error}") from error
        if not isinstance(template, dict):
            raise CheckpointError(f"{FILE}: response_template is not an object; split again")
        return template

    @property
    def chat_template(self) -> str | None:
        """The source of the default chat template."""
        return self._staged.chat_template

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The tokens that add no text to an answer, by their text."""
        ids = () if self._tokenizer is None else sorted(self._tokenizer.special_ids)
        return {text: number for number in ids if (text := self.spell(number))}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of an answer.

        Raises:
            BadRequest: the model has no tokenizer.
        """
        text = self._require_tokenizer().decode(ids, skip_special_tokens)
        return clean_up(text) if self._staged.cleans_up else text

    def special_token(self, role: str) -> str | None:
        """A special token by its role, such as `eos_token`; None if the model has none."""
        return self._staged.special_tokens.get(role)

    def token_id(self, role: str) -> int | None:
        """The id of a special token by its role, such as `mask_token`; None if it has none."""
        token = self._staged.special_tokens.get(role)
        if token is None or self._tokenizer is None:
            return None
        return self._tokenizer.token_to_id(token)

    def spell(self, token: int) -> str:
        """The text of one token, special tokens included; "" without a tokenizer."""
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        """A detokenizer for one answer; without a tokenizer its pieces are empty."""
        kind = CleaningDetokenizer if self._staged.cleans_up else Detokenizer
        return kind(self._tokenizer, skip_special_tokens)

    def _require_tokenizer(self) -> Backend:
        if self._tokenizer is None:
            raise BadRequest("prompt: this model has no tokenizer; send token ids instead")
        return self._tokenizer


def _backend(staged: StagedTokenizer, files: Mapping[str, bytes]) -> Backend:
    if staged.pieces is None:
        return FastTokenizer(staged)
    # Imports SentencePiece, which few models need.
    from skynet.tokenizer.piece_tokenizer import PieceTokenizer

    return PieceTokenizer(staged.pieces, files, staged.split_special_tokens)


def _split(text: str, split: Callable[[], Made]) -> Made:
    """`split()`, with an error for a text that is none."""
    if not isinstance(text, str):
        raise BadRequest(f"prompt: expected text, got {type(text).__name__}")
    try:
        return split()
    except (TypeError, UnicodeEncodeError) as error:  # a lone surrogate, from "\\ud800" in JSON
        raise BadRequest(f"prompt: cannot be written as UTF-8: {error}") from error
    except SkynetError:
        raise
    except Exception as error:  # the libraries raise plain Exception
        raise CheckpointError(f"the model's tokenizer cannot split a text: {error}") from error
