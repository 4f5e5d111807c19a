"""A model's text files: prompts and chats to token ids, token ids to text.

The files are those of `Checkpoint.text_files`, staged with the weights. Knows tokenizers, but
neither Transformers nor models nor Redis.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from skynet.errors import BadRequest, CheckpointError
from skynet.tokenizer.chat_template import ChatTemplate
from skynet.tokenizer.cleanup import clean_up
from skynet.tokenizer.detokenizer import CleaningDetokenizer, Detokenizer
from skynet.tokenizer.languages import Languages, prompt_tokens
from skynet.tokenizer.sentence_pieces import LANGUAGE_CODE, PieceEncoder

CLEAN_UP = "clean_up_tokenization_spaces"


class Text:
    """A model's tokenizer and chat template; a model may lack either."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """
        Args:
            files: file name -> content.

        Raises:
            CheckpointError: a file cannot be read; names it.
        """
        tokenizer = self._tokenizer = _load_tokenizer(files.get("tokenizer.json"))
        self.has_tokenizer = tokenizer is not None
        self._vocabulary: dict[str, int] = _load_object(files, "source_vocabulary.json")
        self._source = _piece_encoder(tokenizer, files, "source.spm", self._vocabulary)
        self._target = _piece_encoder(tokenizer, files, "target.spm", {}) or self._source
        self._cleans_up = bool(_load_object(files, "decoding.json").get(CLEAN_UP))
        special_tokens = _load_object(files, "special_tokens.json")
        self._special_tokens = {name: str(token) for name, token in special_tokens.items()}
        self._chat_template = _load_chat_template(
            files.get("chat_template.jinja"), self._special_tokens
        )
        self.has_chat_template = self._chat_template is not None
        self._silent_ids = _special_ids(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens around it included.

        Raises:
            BadRequest: the model has no tokenizer, or `text` is not valid Unicode.
        """
        return self._encode(text, self._source, add_special_tokens=True)

    @cached_property
    def languages(self) -> Languages:
        """The tokenizer's language codes, for models that translate."""
        if self._tokenizer is None:
            return Languages({}, [])
        added = self._tokenizer.get_added_tokens_decoder()
        tokens = {token.content: token_id for token_id, token in added.items()}
        return Languages(self._vocabulary or tokens, self._around)

    @cached_property
    def _around(self) -> list[str | None]:
        return prompt_tokens(self._require_tokenizer())

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text within an answer: without special tokens around it."""
        return self._encode(text, self._target, add_special_tokens=False)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to the beginning of the assistant's next answer.

        Raises:
            BadRequest: no template; a message is not {"role": ..., "content": ...}; or the
                template refuses the messages.
        """
        if self._chat_template is None:
            raise BadRequest("messages: this model has no chat template; send a prompt instead")
        # The template includes the special tokens.
        prompt = self._chat_template.render(messages)
        return self._encode(prompt, self._source, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens.

        Raises:
            BadRequest: the model has no tokenizer.
        """
        text: str = self._require_tokenizer().decode(list(ids), skip_special_tokens=True)
        return clean_up(text) if self._cleans_up else text

    def token_id(self, role: str) -> int | None:
        """The id of a special token by its role, such as `mask_token`; None if it has none."""
        token = self._special_tokens.get(role)
        if token is None or self._tokenizer is None:
            return None
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def spell(self, token: int) -> str:
        """The text of one token, special tokens included; "" without a tokenizer."""
        if self._tokenizer is None:
            return ""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for one answer; without a tokenizer its pieces are empty."""
        kind = CleaningDetokenizer if self._cleans_up else Detokenizer
        return kind(self._tokenizer, self._silent_ids)

    def _encode(
        self, text: str, pieces: PieceEncoder | None, add_special_tokens: bool
    ) -> list[int]:
        if not isinstance(text, str):
            raise BadRequest(f"prompt: expected text, got {type(text).__name__}")
        tokenizer = self._require_tokenizer()
        try:
            if pieces is not None:
                return pieces.encode(text, self._around if add_special_tokens else None)
            encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:  # a lone surrogate, from "\\ud800" in JSON
            raise BadRequest(f"prompt: cannot be written as UTF-8: {error}") from error
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"tokenizer.json cannot split a text: {error}") from error
        ids: list[int] = encoding.ids
        return ids

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise BadRequest("prompt: this model has no tokenizer; send token ids instead")
        return self._tokenizer


def _load_tokenizer(content: bytes | None) -> Tokenizer | None:
    if content is None:
        return None
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
    # Some tokenizers are saved with the padding and truncation of their training.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _special_ids(tokenizer: Tokenizer | None) -> frozenset[int]:
    """Ids of tokens that add no text to an answer."""
    if tokenizer is None:
        return frozenset()
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _piece_encoder(
    tokenizer: Tokenizer | None,
    files: Mapping[str, bytes],
    name: str,
    vocabulary: Mapping[str, int],
) -> PieceEncoder | None:
    """The encoder of a SentencePiece file; None without the file or a tokenizer."""
    if tokenizer is None or name not in files:
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    return PieceEncoder(
        files[name],
        name,
        vocabulary.get if vocabulary else tokenizer.token_to_id,
        unknown=getattr(tokenizer.model, "unk_token", None) or "",
        special=[token.content for token in added if not LANGUAGE_CODE.fullmatch(token.content)],
        codes_first="target.spm" in files,
    )


def _load_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(files.get(name, b"{}")))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} cannot be read: {error}") from error


def _load_chat_template(
    content: bytes | None, special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    try:
        return None if content is None else ChatTemplate(content.decode(), special_tokens)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"chat_template.jinja cannot be read: {error}") from error
