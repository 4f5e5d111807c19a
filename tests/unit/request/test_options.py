"""Options: defaults, limits, and errors that name the option and its value."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skynet.errors import BadRequest
from skynet.request.option_table import ARGUMENTS, BY_NAME, KNOWN, OPTIONS
from skynet.request.option_values import check_value, check_wait, shown
from skynet.request.options import (
    DEFAULT_MAX_TOKENS,
    Limits,
    check_options,
    check_priority,
    check_record,
    check_samples,
)
from skynet.request.record import Options, Record

SLOT = 1000
LIMITS = Limits(SLOT)


def test_defaults_are_greedy() -> None:
    # Given nothing / Then the answer is greedy, of the default length
    assert check_options({}, 10, LIMITS) == Options(max_tokens=DEFAULT_MAX_TOKENS)
    assert check_options(dict.fromkeys(KNOWN), 10, LIMITS) == Options(max_tokens=DEFAULT_MAX_TOKENS)


def test_the_default_length_fills_the_slot() -> None:
    # Given a prompt that leaves 3 tokens / Then 3 are asked for
    assert check_options({}, SLOT - 3, LIMITS).max_tokens == 3


def test_all_options_arrive() -> None:
    # Given all options
    given_options = {
        "max_tokens": 990,
        "temperature": 1,
        "top_k": 40,
        "top_p": 0.9,
        "seed": 2**64 - 1,
        "stop": ["\n", "END"],
        "ignore_eos": True,
        "min_p": 0.05,
        "do_sample": True,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 990,
        "bad_words_ids": [[1, 2], (3,), [3]],
        "suppress_tokens": (4, 5),
        "begin_suppress_tokens": [6],
        "forced_bos_token_id": 7,
        "forced_eos_token_id": 8,
        "logprobs": 20,
        "num_beams": 1,
        "cache_salt": "x" * 256,
        "frequency_penalty": -2,
        "presence_penalty": 0.5,
        "logit_bias": {"7": -100, 8: 2.5},
        "stop_token_ids": [9],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "prompt_logprobs": 20,
    }
    # When / Then
    options = check_options(given_options, 10, LIMITS)
    assert options == Options(
        max_tokens=990,
        temperature=1.0,
        top_k=40,
        top_p=0.9,
        seed=2**64 - 1,
        stop=("\n", "END"),
        ignore_eos=True,
        min_p=0.05,
        repetition_penalty=1.5,
        no_repeat_ngram_size=3,
        min_new_tokens=990,
        bad_words_ids=((1, 2), (3,)),
        suppress_tokens=(4, 5),
        begin_suppress_tokens=(6,),
        forced_bos_token_id=7,
        forced_eos_token_id=(8,),
        logprobs=20,
        cache_salt="x" * 256,
        frequency_penalty=-2.0,
        presence_penalty=0.5,
        logit_bias=((7, -100.0), (8, 2.5)),
        stop_token_ids=(9,),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        prompt_logprobs=20,
    )
    # And they are the same in a record, which is checked again
    assert Options.from_json(options.to_json()) == options
    check_record(Record("r", (1, 2), options, 0.0, 1.0), 1000, 1000)
    assert check_options({"stop": "END"}, 10, LIMITS).stop == ("END",)


def test_an_answer_may_go_to_the_end_of_the_context() -> None:
    assert check_options({"max_tokens": -1}, 10, LIMITS).max_tokens == SLOT - 10
    with pytest.raises(BadRequest, match="the prompt has 1000 tokens"):
        check_options({"max_tokens": -1}, SLOT, LIMITS)


def test_a_prompt_that_fills_the_context_can_be_scored() -> None:
    # Given no answer / Then the prompt may be as long as a slot
    given_options = {"max_tokens": 0, "prompt_logprobs": 1}
    assert check_options(given_options, SLOT, LIMITS).max_tokens == 0
    with pytest.raises(BadRequest, match="the prompt has 1001 tokens"):
        check_options(given_options, SLOT + 1, LIMITS)


def test_prompts_of_encoders_are_not_scored() -> None:
    given_options = {"prompt_logprobs": 1, "decoder_start_token_id": 2}
    with pytest.raises(BadRequest, match="prompt_logprobs 1: an encoder reads the prompt"):
        check_options(given_options, 1, Limits(SLOT, has_encoder=True))


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_a_record_without_room_for_a_token_is_refused(max_tokens: int) -> None:
    # Given a record that no client writes / When / Then
    with pytest.raises(BadRequest, match=f"max_tokens {max_tokens}: 1 or more"):
        check_record(Record("r", (1,), Options(max_tokens=max_tokens), 0.0, 1.0), 10, 10)


def test_beams_arrive() -> None:
    # Given
    given_options = {"num_beams": 4, "length_penalty": -0.5, "early_stopping": "never"}
    # When / Then
    options = check_options(given_options, 10, Limits(SLOT, num_slots=4))
    assert (options.num_beams, options.length_penalty, options.early_stopping) == (4, -0.5, "never")
    with pytest.raises(BadRequest, match="num_beams 4: each takes a slot, and the cluster has 3"):
        check_options(given_options, 10, Limits(SLOT, num_slots=3))


def test_a_sampled_request_without_a_seed_gets_one() -> None:
    # Given two requests that sample / Then each can be replayed, and they differ
    first, second = (check_options({"temperature": 0.7}, 1, LIMITS).seed for _ in range(2))
    assert first is not None
    assert second is not None
    assert first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token": 5}, "unknown option max_token; known are max_tokens"),
        ({"best_of": 2, "n": 1}, "unknown option best_of, n"),
        ({"max_tokens": 0}, "max_tokens 0: 1 or more, -1 to the end of the context, or 0 with"),
        ({"max_tokens": -2}, "max_tokens -2"),
        ({"max_tokens": 2.5}, "max_tokens 2.5"),
        ({"max_tokens": True}, "max_tokens True"),
        ({"max_tokens": "10"}, "max_tokens '10'"),
        ({"max_tokens": 991}, "max_tokens 991: 10 tokens of prompt leave room for 990"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": 101}, "temperature 101: 0, or 0.001 to 100"),
        ({"temperature": Fraction(1, 3)}, "temperature 1/3: a finite number"),
        ({"temperature": np.float32(0.0007)}, "temperature 0.0007: 0, or 0.001 to 100"),
        ({"temperature": np.float64("nan")}, "temperature nan: a finite number"),
        ({"temperature": np.True_}, "temperature np.True_: a finite number"),
        ({"max_tokens": np.int64(991)}, "max_tokens 991: 10 tokens of prompt"),
        ({"max_tokens": np.float32(5)}, "max_tokens 5.0: a whole number"),
        ({"max_tokens": 10**20}, f"max_tokens 1{'0' * 20}: a whole number"),
        ({"temperature": 1e-46}, "temperature 1e-46"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"temperature": True}, "temperature True"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_k": 1.5}, "top_k 1.5"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_p": 1.01}, "top_p 1.01"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "x"}, "seed 'x'"),
        ({"stop": ""}, "stop ''"),
        ({"stop": ["a", ""]}, "stop ''"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 5}, "stop 5: a text, or up to 16"),
        ({"stop": [5]}, "stop 5"),
        ({"stop": b"a"}, "stop b'a': a text, or up to 16"),
        ({"ignore_eos": 1}, "ignore_eos 1"),
        ({"do_sample": 1}, "do_sample 1"),
        ({"min_p": 1.1}, "min_p 1.1: 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty -1"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size -1"),
        ({"min_new_tokens": 9, "max_tokens": 8}, "min_new_tokens 9: a whole number from 0 to 8"),
        ({"bad_words_ids": [1]}, "bad_words_ids 1"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [[100]]}, "bad_words_ids 100: a whole number from 0 to 99"),
        ({"bad_words_ids": "no"}, "bad_words_ids"),
        ({"bad_words": [""]}, "bad_words ''"),
        ({"bad_words": 5}, "bad_words"),
        ({"suppress_tokens": [100]}, "suppress_tokens 100"),
        ({"begin_suppress_tokens": 1}, "begin_suppress_tokens 1"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id -1"),
        ({"forced_eos_token_id": [1, 100]}, "forced_eos_token_id 100"),
        ({"forced_eos_token_id": 1, "suppress_tokens": [1, 2]}, "forced_eos_token_id (1,)"),
        ({"logprobs": 21}, "logprobs 21: a whole number from 0 to 20"),
        ({"logprobs": True}, "logprobs True"),
        ({"cache_salt": ""}, "cache_salt '': a text of 1 to 256 characters"),
        ({"cache_salt": "x" * 257}, "a text of 1 to 256 characters"),
        ({"cache_salt": 1}, "cache_salt 1: a text"),
        ({"num_beams": 65}, "num_beams 65: a whole number from 1 to 64"),
        ({"num_beams": 2.0}, "num_beams 2.0"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams 2 with sampling is not supported"),
        ({"num_beams": 2, "logprobs": 1}, "num_beams 2 with logprobs is not supported"),
        ({"num_beams": 2, "stop": "x"}, "num_beams 2 with stop is not supported"),
        ({"length_penalty": float("nan")}, "length_penalty nan"),
        ({"length_penalty": 11}, "length_penalty 11: -10 to 10"),
        ({"early_stopping": 1}, "early_stopping 1: True, False or 'never'"),
        ({"num_beams": 2, "stop_token_ids": [1]}, "num_beams 2 with stop_token_ids is not"),
        ({"num_beams": 2, "prompt_logprobs": 1}, "num_beams 2 with prompt_logprobs is not"),
        ({"prompt_logprobs": 21}, "prompt_logprobs 21: a whole number from 0 to 20"),
        ({"frequency_penalty": 2.1}, "frequency_penalty 2.1: -2 to 2"),
        ({"presence_penalty": -2.1}, "presence_penalty -2.1: -2 to 2"),
        ({"presence_penalty": float("nan")}, "presence_penalty nan"),
        ({"logit_bias": {1: 100.5}}, "logit_bias 100.5: a mapping of up to 1024 token ids to"),
        ({"logit_bias": {1: True}}, "logit_bias True"),
        ({"logit_bias": {100: 1}}, "logit_bias 100: a whole number from 0 to 99"),
        ({"logit_bias": {"-1": 1}}, "logit_bias '-1': a whole number"),
        ({"logit_bias": {"1": 1, 1: 2}}, "logit_bias: token 1 has two biases"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias {0: 1"),
        ({"logit_bias": 5}, "logit_bias 5: a mapping"),
        ({"logit_bias": [1, 2]}, "logit_bias 1: a mapping"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"stop_token_ids": [100]}, "stop_token_ids 100: a whole number from 0 to 99"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output 1: True or False"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens 'no': True or False"),
        ({"decoder_start_token_id": 1}, "decoder_start_token_id 1: this model has no encoder"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    # When / Then
    with pytest.raises(BadRequest) as raised:
        check_options(options, 10, Limits(SLOT, vocab_size=100))
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600


def test_an_integer_that_python_does_not_print_is_refused() -> None:
    for name in ("max_tokens", "temperature"):
        with pytest.raises(BadRequest, match=f"{name} of 16610 bits: a (whole|finite) number"):
            check_options({name: 10**5000}, 10, LIMITS)


def test_numpys_numbers_are_numbers() -> None:
    # Given options from an array / Then they are the numbers that the array shows
    given_options = {
        "max_tokens": np.int64(5),
        "seed": np.uint64(2**64 - 1),
        "repetition_penalty": np.float32(0.01),
        "top_p": np.float64(0.9),
        "suppress_tokens": [np.int32(4)],
        "forced_eos_token_id": np.int64(8),
    }
    options = check_options(given_options, 10, LIMITS)
    assert (options.max_tokens, options.seed) == (5, 2**64 - 1)
    assert (options.repetition_penalty, options.top_p) == (0.01, 0.9)
    assert (options.suppress_tokens, options.forced_eos_token_id) == ((4,), (8,))
    # And they can be written into a record
    assert Options.from_json(options.to_json()) == options


@pytest.mark.parametrize("given", [None, 0, 0.01, np.float32(0.01), 1_000_000])
def test_a_wait_is_seconds_or_none(given: Any) -> None:
    assert check_wait(given) == (None if given is None else float(str(given)))


@pytest.mark.parametrize("given", [-1, "30", True, float("nan"), float("inf"), 2e9, [1]])
def test_any_other_wait_is_refused(given: Any) -> None:
    with pytest.raises(BadRequest, match=rf"^timeout {re.escape(shown(given))}: "):
        check_wait(given)


@pytest.mark.parametrize("timeout_s", [0.01, 0.3, 1e-6, 600, 1_234_567.25, 1e9])
def test_a_record_shows_the_timeout_that_was_given(timeout_s: float) -> None:
    # Given a time of today, at which a float has steps of 0.2 microseconds
    created = 1_790_000_000.123456
    # Then their difference is what was given
    record = Record("r", (1,), Options(), created, created + timeout_s)
    assert record.timeout_s == timeout_s


def test_bad_words_are_split_as_they_may_stand_in_a_text() -> None:
    # Given a tokenizer of one letter a token
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    # Then a word is banned at a text's start and after a space, beside ids that are given
    given_options = {"bad_words": ["no", "a"], "bad_words_ids": [[97]]}
    bad_words = check_options(given_options, 1, LIMITS, encode=encode).bad_words_ids
    assert bad_words == ((97,), (110, 111), (32, 110, 111), (32, 97))
    assert check_options({"bad_words": "a"}, 1, LIMITS, encode=encode).bad_words_ids[0] == (97,)


def test_samples_are_1_to_16() -> None:
    assert [check_samples(value, Options()) for value in (1, 16)] == [1, 16]
    for value in (0, 17, 1.0, True, "2"):
        with pytest.raises(BadRequest, match=f"n {value!r}: a whole number from 1 to 16"):
            check_samples(value, Options())
    with pytest.raises(BadRequest, match="n 2 with num_beams 3"):
        check_samples(2, Options(num_beams=3))


def test_a_priority_is_0_to_9() -> None:
    # Given what may be asked for / Then it is taken
    assert [check_priority(value) for value in range(10)] == list(range(10))


@pytest.mark.parametrize("value", [-1, 10, 1.0, True, "5", None])
def test_any_other_priority_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match=f"priority {value!r}: a whole number from 0 to 9"):
        check_priority(value)


def test_a_prompt_that_fills_its_slot_is_refused() -> None:
    # Given a prompt as long as a slot / Then the error has both numbers
    with pytest.raises(BadRequest, match=r"has 1000 tokens, the cluster holds 1000"):
        check_options({}, SLOT, LIMITS)


@given(
    options=st.dictionaries(
        st.sampled_from(KNOWN),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text("a\n", max_size=5)
        | st.lists(st.text("a\n", max_size=3), max_size=3),
    )
)
def test_any_options_are_refused_or_within_their_limits(options: dict[str, Any]) -> None:
    # Given any options that a caller may send
    try:
        checked = check_options(options, 10, LIMITS)
    except BadRequest:
        return
    # Then what passes can be computed with
    assert 1 <= checked.max_tokens <= SLOT - 10
    assert 0 <= checked.temperature <= 100
    assert 0 < checked.top_p <= 1
    assert checked.top_k >= 0
    assert 0 <= checked.min_p <= 1
    assert 0.01 <= checked.repetition_penalty <= 100
    assert checked.min_new_tokens <= checked.max_tokens
    assert all(checked.bad_words_ids)
    assert checked.seed is not None or checked.temperature == 0
    assert all(isinstance(stop, str) and stop for stop in checked.stop)


def test_the_record_has_a_field_of_the_same_default_for_each_row() -> None:
    # Given all fields but that of text tasks
    fields = {field.name: field.default for field in dataclasses.fields(Options)}
    assert fields.pop("read") is None
    # Then
    assert fields == {option.name: option.default for option in OPTIONS if option.recorded}


def test_names_and_flags_are_unique_and_defaults_are_accepted() -> None:
    # Given
    rows = OPTIONS + ARGUMENTS
    flags = [option.flag for option in rows if option.flag]
    # Then
    assert len(BY_NAME) == len(rows)
    assert len(set(flags)) == len(flags)
    for option in rows:
        if option.default is not None:
            assert check_value(option, option.default) == option.default
