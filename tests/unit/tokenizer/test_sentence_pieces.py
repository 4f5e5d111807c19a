"""SentencePiece's models, read and applied without SentencePiece."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skynet.errors import CheckpointError
from skynet.tokenizer.charsmap import Charsmap
from skynet.tokenizer.sentence_pieces import SentencePieces
from skynet.tokenizer.sentencepiece_file import BPE, Kind, parse_sentencepiece, read_sentencepiece
from tests.spm import spm

TOKENIZERS = Path(__file__).parents[2] / "tokenizers"
RULES = b"\4\0\0\0" + bytes(4)  # a trie of its root only
WORDS = [("▁", -2.0), ("▁ab", -1.0), ("a", -3.0), ("b", -3.0), ("bc", -2.5), ("c", -3.0)]


def cut(content: bytes, text: str) -> list[str]:
    return SentencePieces(parse_sentencepiece(content)).split(text)


def test_a_model_is_read_as_it_was_written() -> None:
    # Given
    content = spm([*WORDS, ("<s>", 0.0, Kind.CONTROL)], byte_fallback=True, charsmap=RULES)
    # When
    model = parse_sentencepiece(content)
    # Then
    assert [(piece.text, piece.score) for piece in model.pieces[1:-1]] == WORDS
    assert model.texts(Kind.CONTROL) == ["<s>"]
    assert (model.unknown_id, model.byte_fallback, model.charsmap) == (0, True, RULES)
    assert model.add_dummy_prefix
    assert model.remove_extra_whitespaces


@given(st.integers(3, 2000))
def test_a_truncated_model_is_named(tmp_path_factory: pytest.TempPathFactory, lost: int) -> None:
    # Given
    file = tmp_path_factory.getbasetemp() / "source.spm"
    content = (TOKENIZERS / "marian" / "source.spm").read_bytes()
    file.write_bytes(content[:-lost])
    # Then
    with pytest.raises(CheckpointError, match=r"source\.spm is truncated"):
        read_sentencepiece(file)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_as_a_model(content: bytes) -> None:
    try:
        model = parse_sentencepiece(content)
    except ValueError:
        return
    assert model.pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab babc", ["▁ab", "▁", "b", "a", "bc"]),
        ("  ab   ab ", ["▁ab", "▁ab"]),
        ("", []),
        ("   ", []),
        ("axyb", ["▁", "a", "xy", "b"]),
        ("猫犬", ["▁", "猫犬"]),
        ("ab▁", ["▁ab"]),
        ("<s><unk>", ["▁", "<s><unk>"]),
    ],
)
def test_a_text_is_cut_into_the_pieces_with_the_highest_sum(text: str, pieces: list[str]) -> None:
    assert cut(spm([*WORDS, ("<s>", 0.0, Kind.CONTROL)]), text) == pieces


def test_of_equal_cuts_the_first_counts() -> None:
    assert cut(spm([("▁", -1.0), ("0", -2.0), ("00", -2.0)]), "000") == ["▁", "0", "00"]


def test_spaces_stay_where_the_model_keeps_them() -> None:
    content = spm(WORDS, remove_extra_whitespaces=False, add_dummy_prefix=False)
    assert cut(content, " ab  c") == ["▁ab", "▁", "▁", "c"]


def test_unknown_characters_become_bytes() -> None:
    content = spm(WORDS, byte_fallback=True)
    assert cut(content, "aé") == ["▁", "a", "<0xC3>", "<0xA9>"]


def test_defined_pieces_are_whole_wherever_they_stand() -> None:
    content = spm([*WORDS, ("[ab]", 0.0, Kind.USER_DEFINED), ("bca", -0.1, Kind.UNUSED)])
    assert cut(content, "a[ab]bca") == ["▁", "a", "[ab]", "bc", "a"]


def test_pairs_are_merged_by_score() -> None:
    # Given "bc" comes before "▁ab", though that is longer
    words = [(text, -float(rank)) for rank, text in enumerate(["bc", "▁a", "▁ab", *"▁abc"])]
    content = spm(words, model_type=BPE)
    # Then
    assert cut(content, "abc ab") == ["▁a", "bc", "▁ab"]
    assert cut(content, "axyb") == ["▁a", "xy", "b"]


def test_rules_of_normalisation_apply_the_longest_first() -> None:
    # Given rules for e, dot below, and for e, dot below, circumflex
    model = read_sentencepiece(TOKENIZERS / "marian" / "source.spm")
    charsmap = Charsmap(model.charsmap)
    # Then
    assert charsmap.apply("Vie\u0323\u0302t") == "Việt"
    assert charsmap.apply("e\u0323 e\u0301 e\u0300") == "ẹ é e\u0300"
    assert charsmap.apply("\ufb01sh\u200b…") == "fish..."
    assert charsmap.apply("東京🙂") == "東京🙂"


@pytest.mark.parametrize("content", [b"\1", b"\5\0\0\0abc", b"\x10\0\0\0abcd", b"\0\0\0\0"])
def test_rules_that_are_cut_off_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="normalisation rules"):
        parse_sentencepiece(spm(WORDS, charsmap=content))


def test_without_rules_a_text_stays_as_it_is() -> None:
    assert Charsmap(b"").apply("e\u0301 \ufb01") == "e\u0301 \ufb01"
