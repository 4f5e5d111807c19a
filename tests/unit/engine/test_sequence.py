"""A sequence: its end, its text, and its replay."""

from __future__ import annotations

import pytest
from checkpoints import staged_text
from engine_fakes import TINY, append, new_sequence
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence
from skynet.request.record import Options, Record
from skynet.tokenizer.text import Text

LETTERS = "abcdefgh "
MODEL = ModelInfo(TINY, Text({}), frozenset(), 512)


@pytest.fixture(scope="module")
def letters() -> Text:
    """A tokenizer whose token n is letter n."""
    return letter_text()


def letter_text() -> Text:
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token=" "))
    tokenizer.decoder = decoders.Fuse()
    return staged_text(tokenizer)


def feed(sequence: Sequence, text: str) -> str:
    """Append one token per letter until the sequence ends; the text that was released."""
    out = ""
    for letter in text:
        out += append(sequence, LETTERS.index(letter)).text
        if sequence.finish_reason:
            break
    return out


def test_a_sequence_ends_at_max_tokens(letters: Text) -> None:
    # Given room for 3 tokens / When 4 would come
    sequence = new_sequence("a", [1], max_tokens=3, text=letters)
    # Then it ends at the third
    assert feed(sequence, "abcd") == "abc"
    assert (sequence.finish_reason, sequence.output.tokens) == ("length", [0, 1, 2])


def test_a_sequence_ends_where_its_slot_is_full() -> None:
    # Given a slot of 5 tokens and a prompt of 3
    sequence = new_sequence("a", [1, 2, 3], max_tokens=100, max_length=5)
    # When tokens come / Then two fit
    assert append(sequence, 7).index == 0
    assert sequence.finish_reason == ""
    assert append(sequence, 8).index == 1
    assert sequence.finish_reason == "length"


@pytest.mark.parametrize(("ignore_eos", "reason"), [(False, "stop"), (True, "")])
def test_a_sequence_ends_at_an_end_id_unless_ignore_eos_is_set(
    ignore_eos: bool, reason: str
) -> None:
    # Given a model with two ends / When one of them comes
    sequence = new_sequence("a", [1], end_ids=[5, 6], max_tokens=9, ignore_eos=ignore_eos)
    append(sequence, 4)
    append(sequence, 6)
    # Then
    assert sequence.finish_reason == reason
    assert sequence.output.tokens == [4, 6]


def test_a_stop_string_across_tokens_is_matched_and_not_released(letters: Text) -> None:
    # Given a stop string of three tokens
    sequence = new_sequence("a", [1], max_tokens=50, stop=("cde",), text=letters)
    # When it comes after a false start
    out = feed(sequence, "abcdcdefgh")
    # Then the text before it was released, and nothing of it
    end = sequence.end()
    assert (out + end.text, end.stop) == ("abcd", "cde")
    assert (sequence.output.text, sequence.finish_reason) == ("abcd", "stop")


def test_text_held_back_for_a_stop_string_is_released_at_the_end(letters: Text) -> None:
    # Given an answer that ends in the beginning of a stop string
    sequence = new_sequence("a", [1], max_tokens=4, stop=("cdef",), text=letters)
    # When its length ends it
    out = feed(sequence, "abcd")
    # Then the held text is in the end
    end = sequence.end()
    assert (out, end.text, end.finish_reason, end.stop) == ("ab", "cd", "length", "")
    assert sequence.output.text == "abcd"


@given(
    answer=st.text(LETTERS, min_size=1, max_size=20),
    stop=st.text(LETTERS, max_size=3),
    at=st.integers(0, 20),
)
def test_a_restored_sequence_continues_like_an_undisturbed_one(
    answer: str, stop: str, at: int
) -> None:
    # Given an undisturbed run
    text, stops = letter_text(), (stop,) if stop else ()
    whole = new_sequence("a", [1, 2], max_tokens=12, stop=stops, text=text)
    pieces = feed(whole, answer)
    rest, stop = whole.end().text, whole.end().stop
    # When one is restored in the middle of it and goes on
    kept = whole.output.tokens[:at]
    before = new_sequence("a", [1, 2], max_tokens=12, stop=stops, text=text)
    emitted = feed(before, "".join(LETTERS[token] for token in kept))
    restored = new_sequence("a", [1, 2], max_tokens=12, stop=stops, text=text)
    restored.output.restore(kept)
    row = None
    if not restored.finish_reason:
        restored.take_place([0], None)
        (row,) = restored.rows(1000)
        emitted += feed(restored, answer[len(kept) :])
    # Then it ends with the same tokens, text and reason, no text twice
    assert restored.output.tokens == whole.output.tokens
    assert (restored.finish_reason, emitted, restored.end().text) == (
        whole.finish_reason,
        pieces,
        rest,
    )
    assert (restored.output.text, restored.end().stop) == (whole.output.text, stop)
    # And its replay is one prefill of prompt and answer
    if row is not None:
        assert (row.start, row.tokens) == (0, (1, 2, *kept))


def test_a_row_needs_a_slot() -> None:
    # Given a sequence that waits / Then it has no row
    with pytest.raises(ValueError, match="has no slot"):
        new_sequence("a", [1]).rows(5)


def test_timings_count_from_submission() -> None:
    # Given a sequence with three tokens at known times
    sequence = new_sequence("a", [1], max_tokens=9)
    for token in (1, 2, 3):
        append(sequence, token)
    times = sequence.timings
    times.started_at, times.first_token_at, times.last_token_at = 1.0, 2.0, 4.0
    # Then (it was submitted at 0) the first came after 2 s, the two others in 2 s
    timings = sequence.end().timings
    assert timings["queued_s"] == 1.0
    assert timings["first_token_s"] == 2.0
    assert timings["decode_tokens_per_s"] == 1.0
    assert timings["total_s"] >= timings["first_token_s"]


def test_a_replay_keeps_the_times_that_were_written_down() -> None:
    # Given a record of two tokens that another orchestrator made, and a clock of Redis
    record = Record(
        "a",
        (1,),
        Options(max_tokens=3),
        created=100.0,
        deadline=1e12,
        emitted=2,
        started_at=101.0,
        first_token_at=102.0,
        last_token_at=103.0,
    )
    now = 106.0
    sequence = Sequence.of(record, MODEL, lambda: now)
    sequence.output.restore([4, 5])
    # When its last token comes
    append(sequence, 6)
    # Then its times count from the submission, through the pause
    assert sequence.end().timings == {
        "queued_s": 1.0,
        "first_token_s": 2.0,
        "decode_tokens_per_s": 0.5,
        "total_s": 6.0,
    }


def test_a_replay_without_a_new_token_has_its_times_too() -> None:
    # Given a record whose last token was written and its end was not
    record = Record(
        "a",
        (1,),
        Options(max_tokens=3),
        created=100.0,
        deadline=1e12,
        state="running",
        emitted=3,
        started_at=101.0,
        first_token_at=102.0,
        last_token_at=104.0,
    )
    sequence = Sequence.of(record, MODEL)
    # When it is taken up
    sequence.output.restore([4, 5, 6])
    # Then
    assert sequence.finish_reason == "length"
    assert sequence.end().timings["decode_tokens_per_s"] == 1.0
    assert sequence.end().timings["first_token_s"] == 2.0


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_token_ends_an_answer(letters: Text, included: bool) -> None:
    # Given a stop token, and a request that ignores end tokens
    sequence = new_sequence(
        "a",
        [1],
        max_tokens=9,
        text=letters,
        ignore_eos=True,
        stop_token_ids=(LETTERS.index("d"), LETTERS.index("h")),
        include_stop_str_in_output=included,
    )
    # When it comes / Then the answer ends with it, and its text is there if that is asked for
    streamed = feed(sequence, "abcdef")
    assert streamed + sequence.end().text == ("abcd" if included else "abc")
    assert (sequence.finish_reason, sequence.output.tokens) == ("stop", [0, 1, 2, 3])


@given(answer=st.text("abc ", max_size=12), stops=st.lists(st.text("abc ", min_size=1, max_size=3)))
def test_a_stop_string_may_be_left_in_the_text(answer: str, stops: list[str]) -> None:
    # Given the same request, with and without
    texts = []
    for included in (False, True):
        sequence = new_sequence(
            "a",
            [1],
            max_tokens=20,
            text=letter_text(),
            stop=tuple(stops),
            include_stop_str_in_output=included,
        )
        streamed = feed(sequence, answer) + sequence.end().text
        # Then what is streamed is the whole text
        assert streamed == sequence.output.text
        texts.append(streamed)
    # And they differ by one of the stop strings, at the end of the answer so far
    without, including = texts
    assert including.startswith(without)
    assert including[len(without) :] in ("", *stops)
    ended = [end for end in range(len(answer) + 1) if answer[:end].endswith(tuple(stops))]
    assert including == answer[: ended[0] if stops and ended else len(answer)]
