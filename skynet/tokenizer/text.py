"""Text in and out: prompts and chats to token ids, token ids to text as they come.

Built from the files `Checkpoint.text_files` gives, which are staged with the weights. Knows
tokenizers; nothing of Transformers, models or Redis.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from skynet.errors import BadRequest, CheckpointError
from skynet.tokenizer.chat_template import ChatTemplate
from skynet.tokenizer.cleanup import SpaceCleaner, clean_up
from skynet.tokenizer.languages import Languages, prompt_tokens
from skynet.tokenizer.sentence_pieces import LANGUAGE_CODE, PieceEncoder

CLEAN_UP = "clean_up_tokenization_spaces"


class Text:
    """A model's tokenizer and chat template; a model may lack either."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """From file name -> content.

        Raises:
            CheckpointError: a file that cannot be read; names it.
        """
        self._tokenizer = _load_tokenizer(files.get("tokenizer.json"))
        self._vocabulary: dict[str, int] = _load_object(files, "source_vocabulary.json")
        self._source = self._piece_encoder(files, "source.spm", self._vocabulary)
        self._target = self._piece_encoder(files, "target.spm", {}) or self._source
        self._cleans_up = bool(_load_object(files, "decoding.json").get(CLEAN_UP))
        special_tokens = _load_object(files, "special_tokens.json")
        self._special_tokens = {name: str(token) for name, token in special_tokens.items()}
        self._chat_template = _load_chat_template(
            files.get("chat_template.jinja"), self._special_tokens
        )

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens the model puts around one.

        Raises:
            BadRequest: the model has no tokenizer, or `text` is not encodable.
        """
        return self._encode(text, self._source, add_special_tokens=True)

    def encode_from(
        self, text: str, source_language: str | None = None, target_language: str | None = None
    ) -> list[int]:
        """Token ids of a text to translate.

        Args:
            source_language: the code of the text's language, "de_DE"; None: what the tokenizer was
                saved with.
            target_language: the answer's; stands in the prompts of some models (Marian) only. For
                all others see `answer_language`.

        Raises:
            BadRequest: as `encode`; a language that is not known; a source language for a model
                whose prompts do not name theirs.
        """
        return self.languages.of_prompt(self.encode(text), source_language, target_language)

    def answer_language(self, target_language: str) -> int | None:
        """The token that an answer in a language begins with (`forced_bos_token_id`).

        None where `encode_from` puts the language into the prompt.

        Raises:
            BadRequest: a language that is not known.
        """
        return self.languages.of_answer(target_language)

    def language_id(self, code: str) -> int:
        """The token of a language, by its code.

        Raises:
            BadRequest: a language that is not known; names those that are.
        """
        return self.languages.id_of(code)

    @cached_property
    def languages(self) -> Languages:
        """Those of the tokenizer's tokens that are language codes."""
        if self._tokenizer is None:
            return Languages({}, [])
        added = self._tokenizer.get_added_tokens_decoder()
        tokens = {token.content: token_id for token_id, token in added.items()}
        return Languages(self._vocabulary or tokens, self._around)

    @cached_property
    def _around(self) -> list[str | None]:
        return prompt_tokens(self._require_tokenizer())

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text as it may stand in an answer: without special tokens around it."""
        return self._encode(text, self._target, add_special_tokens=False)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next answer begins.

        Raises:
            BadRequest: no template, messages that are no {"role": ..., "content": ...}, or
                messages that the template refuses.
        """
        if self._chat_template is None:
            raise BadRequest("messages: this model has no chat template; send a prompt instead")
        # The template writes the special tokens itself.
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
        """The id of a special token, `mask_token` for one; None if the model has none."""
        token = self._special_tokens.get(role)
        if token is None or self._tokenizer is None:
            return None
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def spell(self, token: int) -> str:
        """The text of one token alone, special or not; "" without a tokenizer."""
        if self._tokenizer is None:
            return ""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def detokenizer(self) -> Detokenizer:
        """For one answer. Without a tokenizer its pieces are empty: such a model speaks ids."""
        kind = CleaningDetokenizer if self._cleans_up else Detokenizer
        return kind(self._tokenizer, self._silent_ids)

    @cached_property
    def _silent_ids(self) -> frozenset[int]:
        if self._tokenizer is None:
            return frozenset()
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

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
        ids: list[int] = encoding.ids
        return ids

    def _piece_encoder(
        self, files: Mapping[str, bytes], name: str, vocabulary: Mapping[str, int]
    ) -> PieceEncoder | None:
        if self._tokenizer is None or name not in files:
            return None
        added = self._tokenizer.get_added_tokens_decoder().values()
        return PieceEncoder(
            files[name],
            name,
            vocabulary.get if vocabulary else self._tokenizer.token_to_id,
            unknown=self._tokenizer.model.unk_token,
            whole=[token.content for token in added if not LANGUAGE_CODE.fullmatch(token.content)],
            codes_first="target.spm" in files,
        )

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise BadRequest("prompt: this model has no tokenizer; send token ids instead")
        return self._tokenizer


class Detokenizer:
    """Text of one answer, token by token: the pieces, joined, are the decoding of all ids.

    What a token means depends on the one before it (spaces, halves of a UTF-8 character), so each
    token is decoded in a window that begins at the piece before the last: constant cost per token.
    Text that ends in U+FFFD may be half of a character and is held back until it is whole. Where a
    vocabulary has byte tokens (`<0x0A>`), an invalid byte turns the whole run of them to U+FFFD;
    characters of that run that went out already stay as they were.
    """

    # A character has four bytes at most, so what is that far back cannot become whole any more.
    MAX_CHARACTER_TOKENS = 4

    def __init__(self, tokenizer: Tokenizer | None, silent_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._silent_ids = silent_ids
        self._window: list[int] = []
        self._num_emitted = 0  # tokens at the window's start whose text went out: the context

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty."""
        if self._tokenizer is None or token_id in self._silent_ids:
            return ""
        if self._tokenizer.id_to_token(token_id) is None:  # vocabularies are padded with such
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith("\ufffd"):
            return self._release_broken(text)
        before = self._decode(self._window[: self._num_emitted])
        if len(text) <= len(before) or not text.startswith(before):
            return ""
        return self._emit(text, before, len(self._window))

    def flush(self) -> str:
        """What is still held back, when the answer is over."""
        if self._num_emitted == len(self._window):
            return ""
        text = self._decode(self._window)
        before = self._decode(self._window[: self._num_emitted])
        if not text.startswith(before):
            text, before = self._decode(self._window[self._num_emitted :]), ""
        return self._emit(text, before, len(self._window))

    def _emit(self, text: str, before: str, stop: int) -> str:
        self._window = self._window[self._num_emitted :]
        self._num_emitted = stop - self._num_emitted
        return text[len(before) :]

    def _release_broken(self, text: str) -> str:
        """Let go of bytes that no further byte can mend, so that the window stays short."""
        newest = len(self._window) - self.MAX_CHARACTER_TOKENS
        for cut in range(newest, max(self._num_emitted, newest - self.MAX_CHARACTER_TOKENS), -1):
            head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
            before = self._decode(self._window[: self._num_emitted])
            # Equal only if the cut is not inside of a character.
            if head + tail == text and head.startswith(before):
                return self._emit(head, before, cut)
        return ""

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None or not ids:
            return ""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


class CleaningDetokenizer(Detokenizer):
    """A detokenizer that takes spaces before punctuation out."""

    def __init__(self, tokenizer: Tokenizer | None, silent_ids: frozenset[int]) -> None:
        super().__init__(tokenizer, silent_ids)
        self._spaces = SpaceCleaner()

    def push(self, token_id: int) -> str:
        return self._spaces.push(super().push(token_id))

    def flush(self) -> str:
        return self._spaces.push(super().flush()) + self._spaces.flush()


class StopStrings:
    """Ends an answer before the first stop text, wherever the pieces are cut.

    Of several, the one that is complete first counts; of those that are complete at once, the
    longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise BadRequest(f"stop: expected texts that are not empty, got {list(stops)!r}")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    def push(self, piece: str) -> tuple[str, bool]:
        """What of the text so far may go out, and whether a stop text has come.

        A tail that may be the beginning of a stop text is held back.
        """
        if self._stopped:
            return "", True
        text, self._held = self._held + piece, ""
        hits = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            self._stopped = True
            return text[: min(hits)[1]], True
        length = max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - length
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What is held back, when the answer ends without a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without being all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _load_tokenizer(content: bytes | None) -> Tokenizer | None:
    if content is None:
        return None
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
    # Some are saved with the padding and truncation of their training.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _load_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(files.get(name, b"{}")))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be read: {error}") from error


def _load_chat_template(
    content: bytes | None, special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    try:
        return None if content is None else ChatTemplate(content.decode(), special_tokens)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"chat_template.jinja cannot be read: {error}") from error
