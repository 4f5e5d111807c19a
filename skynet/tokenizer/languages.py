"""Language codes of models that translate, in prompts and answers.

Codes are tokens: en_XX (mBART), eng_Latn (NLLB), __en__ (M2M100), >>eng<< (Marian, of the answer).
Knows tokens and ids, not tokenization.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from skynet.errors import BadRequest
from skynet.tokenizer.staged_tokenizer import LanguageCodes

CODE = re.compile(r"[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}|__(?P<plain>[a-z]{2,3})__")
TARGET_CODE = re.compile(r">>(?P<plain>.+)<<")


class Languages:
    """The languages of one tokenizer. Most tokenizers have none."""

    def __init__(self, staged: LanguageCodes) -> None:
        self._staged = staged

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(sorted(self._staged.tokens))

    @property
    def in_prompt(self) -> bool:
        """Whether the answer's language is a token before the prompt."""
        return self._staged.in_prompt

    def has(self, token: int | None) -> bool:
        """Whether an answer in some language begins with this token."""
        return not self._staged.in_prompt and token in self._staged.tokens.values()

    def id_of(self, code: str, name: str = "language") -> int:
        """The token of a language; `name` is the option that holds the code.

        Raises:
            BadRequest: an unknown language; names the known ones.
        """
        known = self._staged.tokens
        if not known:
            raise BadRequest(f"{name} {code!r:.80}: this model's tokenizer has no language codes")
        plain = _plain(code) if isinstance(code, str) else None
        if plain not in known:
            raise BadRequest(f"{name} {code!r:.80}: none of {', '.join(self.codes)}")
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
            if self._staged.place is None:
                raise BadRequest(
                    f"source_language {source_language!r}: this model's prompts do not name the "
                    "language they are in; leave it out"
                )
            ids[self._staged.place] = language
        if target_language is not None:
            language = self.id_of(target_language, "target_language")
            if self._staged.in_prompt:
                ids.insert(0, language)
        return ids

    def of_answer(self, target_language: str) -> int | None:
        """The first token of an answer in this language; None if it is in the prompt instead.

        Raises:
            BadRequest: an unknown language.
        """
        language = self.id_of(target_language, "target_language")
        return None if self._staged.in_prompt else language


def spoken_languages(
    tokens: Mapping[str, int], before: Sequence[int], after: Sequence[int]
) -> LanguageCodes:
    """The languages among a tokenizer's tokens, which answers begin with.

    before, after: the special tokens before and after any prompt.
    """
    codes = _codes(CODE, tokens)
    places = [*range(len(before)), *range(-len(after), 0)]
    found = zip(places, [*before, *after], strict=True)
    place = next((place for place, number in found if number in codes.values()), None)
    return LanguageCodes(tokens=codes, place=place)


def target_languages(tokens: Mapping[str, int]) -> LanguageCodes:
    """The languages of answers among the tokens of a Marian tokenizer, which prompts begin with."""
    return LanguageCodes(tokens=_codes(TARGET_CODE, tokens), in_prompt=True)


def _codes(pattern: re.Pattern[str], tokens: Mapping[str, int]) -> dict[str, int]:
    matching = {token: number for token, number in tokens.items() if pattern.fullmatch(token)}
    return {_plain(token): number for token, number in matching.items()}


def _plain(token: str) -> str:
    match = CODE.fullmatch(token) or TARGET_CODE.fullmatch(token)
    return (match and match["plain"]) or token
