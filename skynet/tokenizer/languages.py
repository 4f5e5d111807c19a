"""Language codes of models that translate, in prompts and answers.

Codes are tokens: en_XX (mBART), eng_Latn (NLLB), __en__ (M2M100), >>eng<< (Marian, of the answer).
Knows tokens and ids, not tokenization.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer

from skynet.errors import BadRequest

CODE = re.compile(r"[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}|__(?P<plain>[a-z]{2,3})__")
TARGET_CODE = re.compile(r">>(?P<plain>.+)<<")


class Languages:
    """The languages of one tokenizer. Most tokenizers have none."""

    def __init__(self, tokens: Mapping[str, int], prompt: Sequence[str | None]) -> None:
        """
        Args:
            tokens: token -> id, of tokens that may be codes.
            prompt: the special tokens of any prompt; None stands for its text.
        """
        self._spoken = _codes(CODE, tokens)
        self._targets = _codes(TARGET_CODE, tokens)
        self._place = _place_of_code(prompt)

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(sorted(self._spoken or self._targets))

    def has(self, token: int | None) -> bool:
        """Whether this token is a language code."""
        return token in self._spoken.values()

    def id_of(self, code: str, name: str = "language") -> int:
        """The token of a language; `name` is the option that holds the code.

        Raises:
            BadRequest: an unknown language; names the known ones.
        """
        known = self._spoken or self._targets
        if not known:
            raise BadRequest(f"{name} {code!r}: this model's tokenizer has no language codes")
        plain = _plain(code) if isinstance(code, str) else None
        if plain not in known:
            raise BadRequest(f"{name} {code!r}: none of {', '.join(self.codes)}")
        return known[plain]

    def of_prompt(
        self,
        ids: Sequence[int],
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> list[int]:
        """A prompt's token ids, with language codes where this model's prompts have them.

        Args:
            source_language: code of the prompt's language, "de_DE"; None: the tokenizer's default.
            target_language: code of the answer's, which only some models (Marian) have in the
                prompt; for the others see `of_answer`.

        Raises:
            BadRequest: an unknown language, or a source language that prompts do not name.
        """
        ids = list(ids)
        if source_language is not None:
            language = self.id_of(source_language, "source_language")
            if self._place is None:
                raise BadRequest(
                    f"source_language {source_language!r}: this model's prompts do not name the "
                    "language they are in; leave it out"
                )
            ids[self._place] = language
        if target_language is not None:
            language = self.id_of(target_language, "target_language")
            if not self._spoken:
                ids.insert(0, language)
        return ids

    def of_answer(self, target_language: str) -> int | None:
        """The first token of an answer in this language; None if it is in the prompt instead.

        Raises:
            BadRequest: an unknown language.
        """
        language = self.id_of(target_language, "target_language")
        return language if self._spoken else None


def prompt_tokens(tokenizer: Tokenizer) -> list[str | None]:
    """Special tokens that a tokenizer's template adds to a prompt; None stands for the text."""
    if tokenizer.post_processor is None:
        return [None]
    processor = json.loads(tokenizer.post_processor.__getstate__())
    parts: Iterable[Mapping[str, Mapping[str, str]]] = processor.get("single", ())
    tokens = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in parts]
    return tokens or [None]


def _codes(pattern: re.Pattern[str], tokens: Mapping[str, int]) -> dict[str, int]:
    return {_plain(token): number for token, number in tokens.items() if pattern.fullmatch(token)}


def _plain(token: str) -> str:
    match = CODE.fullmatch(token) or TARGET_CODE.fullmatch(token)
    return (match and match["plain"]) or token


def _place_of_code(prompt: Sequence[str | None]) -> int | None:
    """Index of the language code in a prompt's ids; negative if it is after the text."""
    text = prompt.index(None) if None in prompt else len(prompt)
    for at, token in enumerate(prompt):
        if token is not None and CODE.fullmatch(token):
            return at if at < text else at - len(prompt)
    return None
