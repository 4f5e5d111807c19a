"""A tokenizer of the `tokenizers` library, with the settings that Transformers keeps outside of its
JSON."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer, normalizers

from skynet.errors import BadRequest, CheckpointError
from skynet.tokenizer.staged_tokenizer import FILE, StagedTokenizer


class FastTokenizer:
    """Token ids of texts and texts of token ids; see `skynet.tokenizer.text.Backend`."""

    def __init__(self, staged: StagedTokenizer) -> None:
        """
        Raises:
            CheckpointError: the library cannot read the tokenizer.
        """
        self._infill_token = staged.infill_token
        self._tokenizer = _load(staged)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)

    def to_json(self) -> str:
        """As the `tokenizers` library reads it, without padding and truncation."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._infill_token is not None and self._infill_token in text:
            raise BadRequest(
                f"prompt: {self._infill_token} asks for infilling, which is not supported; send "
                "the tokens of prefix, suffix and middle as token ids"
            )
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_inside(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)

    def encode_for_embedding(self, text: str, max_tokens: int | None, lower: bool) -> list[int]:
        tokenizer = self._lower_casing if lower else self._tokenizer
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if max_tokens is not None:
            around = tokenizer.num_special_tokens_to_add(is_pair=False)
            encoding.truncate(max(max_tokens - around, 0))
        ids: list[int] = tokenizer.post_process(encoding, add_special_tokens=True).ids
        return ids

    def encode_pair(
        self, texts: tuple[str, str], max_tokens: int | None
    ) -> tuple[list[int], list[int]]:
        first, second = (self._tokenizer.encode(text, add_special_tokens=False) for text in texts)
        if max_tokens is not None:
            around = self._tokenizer.num_special_tokens_to_add(is_pair=True)
            lengths = longest_first(len(first), len(second), max(max_tokens - around, 0))
            for encoding, length in zip((first, second), lengths, strict=True):
                encoding.truncate(length)
        if self._tokenizer.post_processor is None:  # the library would give all of them type 0
            return first.ids + second.ids, [0] * len(first.ids) + [1] * len(second.ids)
        joined = self._tokenizer.post_process(first, second, add_special_tokens=True)
        return joined.ids, joined.type_ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_to_id(self, token: str) -> int | None:
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def has(self, token_id: int) -> bool:
        return self._tokenizer.id_to_token(token_id) is not None

    @cached_property
    def _lower_casing(self) -> Tokenizer:
        """The tokenizer with lower-casing put before its normalizer."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.encode_special_tokens = self._tokenizer.encode_special_tokens
        steps = [normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([step for step in steps if step is not None])
        return tokenizer


def longest_first(first: int, second: int, limit: int) -> tuple[int, int]:
    """The lengths of two texts cut to `limit` tokens together, as Transformers' `longest_first`.

    The longer one is cut down to what the shorter one leaves; if that is less than the shorter
    one, each has half, and the second one the odd token.
    """
    if first + second <= limit:
        return first, second
    shorter = min(first, second)
    if 2 * shorter > limit:
        halves = (limit // 2, limit - limit // 2)
        return halves if first <= second else halves[::-1]
    return (shorter, limit - shorter) if first <= second else (limit - shorter, shorter)


def _load(staged: StagedTokenizer) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(staged.backend or "")
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{FILE}: the tokenizers library cannot read it: {error}; install the version that "
            "the model was split with, or split it again"
        ) from error
    # Some tokenizers are saved with the padding and truncation of their training.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = staged.split_special_tokens
    return tokenizer
