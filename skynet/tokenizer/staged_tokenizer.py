"""The staged form of a model's tokenizer: one JSON file, and SentencePiece models beside it.

Written where a checkpoint is split, from the tokenizer that Transformers loads
(`skynet/checkpoint/transformers_tokenizer.py`); read by every process that handles text, without
Transformers. Data only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skynet.errors import CheckpointError

FILE = "skynet_tokenizer.json"
# SentencePiece models, unchanged: of prompts, and of texts within an answer if that is another one.
SOURCE, TARGET = "source.spm", "target.spm"
FORMAT: Final = 3  # a change of the staged form is another number; 3: pairs of texts
MAX_BYTES = 2**29
MAX_TEMPLATE_CHARACTERS = 2**20
MAX_TEMPLATES = 64

Template = Annotated[str, Field(max_length=MAX_TEMPLATE_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class AddedToken(_Record):
    """A token that is matched in the text itself, before it is split; as in `tokenizers`."""

    content: Annotated[str, Field(min_length=1)]
    id: TokenId
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class Pieces(_Record):
    """A tokenizer that Transformers runs on SentencePiece itself (Marian, M2M100).

    vocabulary: piece -> id, of prompts. target_vocabulary: of answers, if that is another one.
    unknown: the piece for pieces outside of the vocabulary.
    prefix, suffix: token ids before and after a prompt.
    special_ids: tokens that add no text to an answer.
    codes_first: a text may begin with a language code, `>>lang<<`, of one token.
    special_tokens: texts of tokens that SentencePiece does not join with others in an answer.
    after_special: text after each of them.
    underline_is_space: "▁" in an answer's text becomes a space, also in pieces that SentencePiece
        does not know.
    """

    vocabulary: dict[str, TokenId]
    target_vocabulary: dict[str, TokenId] | None = None
    unknown: str
    added_tokens: tuple[AddedToken, ...] = ()
    prefix: tuple[TokenId, ...] = ()
    suffix: tuple[TokenId, ...] = ()
    special_ids: tuple[TokenId, ...] = ()
    codes_first: bool = False
    special_tokens: tuple[str, ...] = ()
    after_special: str = ""
    underline_is_space: bool = False


class LanguageCodes(_Record):
    """The languages of a tokenizer; most have none.

    tokens: code -> token id.
    place: index of the language code in a prompt's ids, negative if it is after the text; None if
        prompts do not name their language.
    in_prompt: the answer's language is a token before the prompt (Marian), not the answer's first.
    """

    tokens: dict[str, TokenId] = {}
    place: int | None = None
    in_prompt: bool = False


class StagedTokenizer(_Record):
    """A tokenizer as Transformers loads it.

    class_name: Transformers' class, for errors.
    backend: the JSON of the `tokenizers` library; None if `pieces` is set.
    special_tokens: by role, those of this model only included: {"bos_token": "<s>", ...}.
    chat_template: the default one; chat_templates: others, by name.
    response_template: how an answer is parsed, the JSON of Transformers' `response_template`.
    split_special_tokens: special tokens in a text are split like other text.
    cleans_up: answers lose the spaces before punctuation (`clean_up_tokenization_spaces`).
    infill_token: a text that contains it asks for infilling (Code Llama), which is not supported.
    model_max_length: tokens of a text, the limit for embeddings if the model sets no other.
    pairs: two texts are split together; `typed`: and their tokens' types are inputs of the model.
    """

    format: Literal[1, 2, 3] = FORMAT
    class_name: str = ""
    backend: str | None = None
    pieces: Pieces | None = None
    special_tokens: dict[str, str] = {}
    chat_template: Template | None = None
    chat_templates: Annotated[dict[str, Template], Field(max_length=MAX_TEMPLATES)] = {}
    response_template: Template | None = None
    split_special_tokens: bool = False
    cleans_up: bool = False
    infill_token: Annotated[str, Field(min_length=1)] | None = None
    model_max_length: int | None = None
    languages: LanguageCodes = LanguageCodes()
    pairs: Literal["none", "plain", "typed"] = "none"

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()


def read_staged_tokenizer(files: Mapping[str, bytes]) -> StagedTokenizer | None:
    """The tokenizer in a model's staged files; None for a model without one.

    Raises:
        CheckpointError: the file is damaged, too large, or of another version of SkyNet.
    """
    content = files.get(FILE)
    if content is None:
        return None
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{FILE} has {len(content)} bytes, at most {MAX_BYTES} are read")
    try:
        return StagedTokenizer.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise CheckpointError(
            f"{FILE} cannot be read ({where}: {first['msg']}): it is damaged or was written by "
            "another version of SkyNet; split the model again"
        ) from error
