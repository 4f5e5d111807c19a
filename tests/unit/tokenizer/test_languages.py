"""Languages by their codes, wherever a family's prompts and answers name them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from checkpoints import staged_text
from tokenizers import Tokenizer, models

from skynet.checkpoint.text_files import text_files
from skynet.errors import BadRequest
from skynet.request.prompts import token_ids
from skynet.tokenizer.languages import spoken_languages, target_languages
from skynet.tokenizer.staged_tokenizer import LanguageCodes
from skynet.tokenizer.text import Text
from tests.made_tokenizers import directory


@cache
def text_of(kind: str) -> Text:
    with TemporaryDirectory() as path:
        return Text(text_files(directory(Path(path), kind, {})))


def encode_from(text: Text, prompt: str, **languages: Any) -> list[int]:
    return text.languages.of_prompt(text.encode(prompt), **languages)


@pytest.mark.parametrize(
    ("kind", "saved_with", "other", "place"),
    [
        ("mbart", "en_XX", "de_DE", -1),
        ("mbart50", "fr_XX", "uk_UA", 0),
        ("m2m100", "en", "ceb", 0),
        ("m2m100-codes", "de", "fr", 0),
        ("nllb", "deu_Latn", "eng_Latn", 0),
    ],
)
def test_a_prompt_names_its_language(kind: str, saved_with: str, other: str, place: int) -> None:
    # Given
    text = text_of(kind)
    ids = text.encode("the cat")
    assert ids[place] == text.languages.id_of(saved_with)
    # When
    from_other = encode_from(text, "the cat", source_language=other)
    # Then only the code is another
    assert from_other[place] == text.languages.id_of(other) != ids[place]
    from_other[place] = ids[place]
    assert from_other == ids
    assert encode_from(text, "the cat") == ids


@pytest.mark.parametrize(("kind", "code"), [("mbart", "ro_RO"), ("m2m100", "ro")])
def test_an_answer_begins_with_its_language(kind: str, code: str) -> None:
    text = text_of(kind)
    assert text.languages.of_answer(code) == text.languages.id_of(code)
    assert text.languages.has(text.languages.id_of(code))
    assert encode_from(text, "the cat", target_language=code) == text.encode("the cat")


@pytest.mark.parametrize("code", ["fra", ">>fra<<"])
@pytest.mark.parametrize("kind", ["marian", "marian-separate"])
def test_marians_prompts_name_the_answers_language(kind: str, code: str) -> None:
    text = text_of(kind)
    assert text.languages.of_answer(code) is None
    assert not text.languages.has(text.languages.id_of(code))
    assert encode_from(text, "the cat", target_language=code) == text.encode(">>fra<< the cat")
    with pytest.raises(BadRequest, match="target_language 'fra': a token before a text names it"):
        token_ids([1, 2], text, raw=True, target_language="fra")


def test_a_code_may_be_written_as_its_token() -> None:
    assert text_of("m2m100").languages.id_of("__fr__") == text_of("m2m100").languages.id_of("fr")
    assert len(text_of("m2m100").languages.codes) == 100
    assert text_of("marian").languages.codes == ("deu_Latn", "fra")


def test_languages_are_those_of_transformers() -> None:
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as OF_MBART
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as OF_50

    assert text_of("mbart").languages.codes == tuple(sorted(OF_MBART))
    assert text_of("mbart50").languages.codes == tuple(sorted(OF_50))


@pytest.mark.parametrize(
    ("kind", "languages", "problem"),
    [
        ("marian", {"target_language": "xx"}, "target_language 'xx': none of deu_Latn, fra"),
        ("marian", {"source_language": "fra"}, "prompts do not name the language they are in"),
        ("mbart", {"source_language": "de"}, "source_language 'de': none of ar_AR, cs_CZ"),
        ("mbart", {"source_language": 7}, "source_language 7: none of"),
        ("t5", {"target_language": "de"}, "tokenizer has no language codes"),
    ],
)
def test_a_language_that_is_not_known_is_refused(
    kind: str, languages: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadRequest, match=problem):
        encode_from(text_of(kind), "the cat", **languages)


def test_the_answers_language_is_refused_by_the_name_of_its_option() -> None:
    with pytest.raises(BadRequest, match="target_language 'xx': none of"):
        text_of("mbart").languages.of_answer("xx")
    with pytest.raises(BadRequest, match="language 'xx': this model's tokenizer has no"):
        Text({}).languages.id_of("xx")


def test_tokens_that_only_look_like_words_are_no_languages() -> None:
    tokens = {"<s>": 0, "en": 1, "__name__": 2, "en_US.UTF-8": 3, ">><<": 4}
    assert spoken_languages(tokens, [0], []).tokens == {}
    assert target_languages(tokens).tokens == {}


def test_only_texts_have_a_language() -> None:
    with pytest.raises(BadRequest, match="source_language 'de_DE': only texts have a language"):
        token_ids([1], text_of("mbart"), raw=True, source_language="de_DE")


def test_a_text_with_a_language_is_not_put_into_a_chat() -> None:
    # Given a model that both chats and translates
    vocabulary = {"[UNK]": 0, "x": 1, "de_DE": 2}
    text = staged_text(
        Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        chat_template="{{ 'chat' }}",
        languages=LanguageCodes(tokens={"de_DE": 2}),
    )
    # When / Then the language is never dropped without a word
    assert token_ids("x", text, raw=False) == [0]
    assert token_ids("x", text, raw=False, target_language="de_DE") == [1]
    with pytest.raises(BadRequest, match="source_language 'de_DE': this model's prompts do not"):
        token_ids("x", text, raw=False, source_language="de_DE")
