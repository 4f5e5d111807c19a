"""Spaces before punctuation: a text in pieces loses those that the whole loses."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from skynet.tokenizer.cleanup import SpaceCleaner, clean_up


def cleaned(pieces: list[str]) -> list[str]:
    cleaner = SpaceCleaner()
    return [*map(cleaner.push, pieces), cleaner.flush()]


@given(st.lists(st.text(" '.nt?msvre", max_size=5), max_size=12))
@example(["do", " n", " ' t"])
@example(["ra ", " ' mt"])
@example([" '", " s"])
def test_pieces_join_to_the_whole_cleaned_up(pieces: list[str]) -> None:
    assert "".join(cleaned(pieces)) == clean_up("".join(pieces))


def test_a_word_waits_only_while_its_space_may_go() -> None:
    assert cleaned(["Hello", " wo", "rld", " !"]) == ["Hello", "", " world", "", "!"]
    assert cleaned(["東京", "は", "首都", "です"]) == ["東京", "は", "首都", "です", ""]
