"""The option `structured_outputs`: its form, its limits, and errors that name the place."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from made_tokenizers import byte_level
from tokenizers import Tokenizer

from skynet.errors import BadRequest
from skynet.request.options import Limits, check_options, check_record
from skynet.request.record import Options, Record
from skynet.request.structured import MAX_BYTES, check_grammar, grammar_of, structured_text

STRINGS = {"type": "string"}


def check(value: Any) -> str:
    text = structured_text(value)
    check_grammar(text)
    return text


@pytest.mark.parametrize(
    "value",
    [
        {"json": {"type": "object", "properties": {"b": STRINGS, "a": {"$ref": "#"}}}},
        {"json": '{"type": "integer"}', "whitespace": True},
        {"json_object": True},
        {"regex": r"\d{3}-\d{4}|[^\x00]"},
        {"choice": ["yes", "no", '"\\\n\t/ é\u2028\x7f\x00']},
        {"grammar": 'start: "a" | "b" start'},
        {"grammar": 'root ::= "yes" | "no" ws\nws ::= [ ]*'},
        {"grammar": 'start: <|im_start|> "a"'},
        {"regex": "a", "json": None},
    ],
)
def test_each_kind_is_kept_as_json_and_read_again(value: dict[str, Any]) -> None:
    # Given a valid option / When it is written into a record
    text = check(value)
    # Then it is JSON, in the order of the schema, and the record's reader takes it
    assert structured_text(text) == text
    assert list(json.loads(text)) == [key for key, field in value.items() if field is not None]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, ["structured_outputs", "5"]),
        ("{", ["not JSON"]),
        ({}, ["exactly one of json", "none"]),
        ({"regex": "a", "json": {}}, ["json and regex"]),
        ({"guided_json": {}}, ["guided_json"]),
        ({"json": 3}, ["structured_outputs.json", "3"]),
        ({"json": "{"}, ["structured_outputs.json", "not JSON"]),
        ({"json": {"const": float("nan")}}, ["structured_outputs.json"]),
        ({"json": {"const": b"a"}}, ["structured_outputs.json", "bytes"]),
        ({"json_object": False}, ["json_object", "True"]),
        ({"regex": ""}, ["structured_outputs.regex"]),
        ({"regex": "(a"}, ["structured_outputs.regex", "unclosed group"]),
        ({"regex": "(?=a)b"}, ["structured_outputs.regex", "look-around"]),
        ({"regex": "a", "whitespace": True}, ["whitespace", "regex"]),
        ({"json": {}, "whitespace": 1}, ["whitespace", "1"]),
        ({"choice": []}, ["structured_outputs.choice"]),
        ({"choice": "yes"}, ["structured_outputs.choice", "yes"]),
        ({"choice": ["a", ""]}, ["structured_outputs.choice"]),
        ({"choice": ["\ud800"]}, ["structured_outputs.choice", "surrogates"]),
        ({"grammar": "start: foo"}, ["structured_outputs.grammar", "foo"]),
        ({"grammar": "root ::= ("}, ["structured_outputs.grammar", "GBNF"]),
        (
            {"grammar": 'start: %json {"uniqueItems": true, "x-guidance": {"lenient": true}}'},
            ["structured_outputs.grammar", "uniqueItems"],
        ),
    ],
)
def test_what_is_wrong_is_named(value: Any, words: list[str]) -> None:
    with pytest.raises(BadRequest) as refusal:
        check(value)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    ("path", "part", "problem"),
    [
        ("properties.a.items", {"uniqueItems": True}, '"uniqueItems" is not supported'),
        ("properties.a.anyOf.1", {"if": {}, "then": {}}, '"if", "then" is not supported'),
        ("$defs.d.properties.q", {"type": "text"}, "Invalid type: text"),
        ("", {"format": "zzz"}, "Unknown format: zzz"),
        ("patternProperties.^a", {"pattern": "(?=a)"}, "look-around"),
    ],
)
def test_a_part_of_a_schema_that_cannot_be_enforced_is_named(
    path: str, part: dict[str, Any], problem: str
) -> None:
    # Given the part in its place, referred to from elsewhere
    schema: Any = part
    for name in reversed(path.split(".") if path else []):
        schema = [STRINGS, schema] if name.isdigit() else {name: schema}
    if "$defs" in schema:
        schema |= {"type": "object", "properties": {"r": {"items": {"$ref": "#/$defs/d"}}}}
    # When / Then it is refused, even if the schema asks to ignore what is not supported
    for more in ({}, {"x-guidance": {"lenient": True}}):
        with pytest.raises(BadRequest) as refusal:
            check({"json": {**schema, **more}})
        where = "structured_outputs.json" + (f".{path}" if path else "")
        assert str(refusal.value).startswith(f"{where}: "), refusal.value
        assert problem in str(refusal.value)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"json": _nested(65)}, "nested more than 64 deep"),
        ({"json": _nested(5000)}, "nested more than 64 deep"),
        ({"json": '{"items":' * 7000}, "not JSON"),
        ({"json": {"enum": ["x" * MAX_BYTES]}}, f"the limit is {MAX_BYTES}"),
        ({"choice": ["a"] * 1025}, "1 to 1024"),
        ({"regex": "é" * (MAX_BYTES // 2)}, f"the limit is {MAX_BYTES}"),
        ({"json": {"allOf": [{"pattern": f"^(a|b)*a.{{{n}}}$"} for n in range(20)]}}, "allOf of"),
        ({"json": {"properties": {f"p{n}": STRINGS for n in range(2700)}}}, "the limit is"),
        ({"json": {"$ref": "http://localhost:1/a.json"}}, "not present in a registry"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "not present in a registry"),
    ],
)
def test_hostile_values_are_refused(value: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(problem)):
        check(value)


@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 3))
def test_a_choice_allows_its_texts_only(texts: list[str], index: int) -> None:
    # Given
    backend = byte_level("<s>", "</s>")
    tokenizer = LLTokenizer(backend, n_vocab=400, eos_token=[1])
    chosen = texts[index % len(texts)]
    ids = Tokenizer.from_str(backend).encode(chosen).ids
    # When
    matcher = LLMatcher(tokenizer, grammar_of(structured_text({"choice": texts})))
    # Then
    assert matcher.consume_tokens(ids), matcher.get_error()
    assert matcher.is_accepting()
    longer = [text for text in texts if text.startswith(chosen) and text != chosen]
    assert matcher.is_stopped() == (not longer)


LIMITS = Limits(1000)


@pytest.mark.parametrize(
    "other",
    [
        {"ignore_eos": True},
        {"min_new_tokens": 3},
        {"forced_bos_token_id": 3},
        {"forced_eos_token_id": 3},
        {"num_beams": 2},
    ],
)
def test_options_that_break_a_grammar_are_refused_by_name(other: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=f"structured_outputs with {next(iter(other))}"):
        check_options({"structured_outputs": {"regex": "a"}, **other}, 10, LIMITS)


def test_an_encoder_decoder_is_refused() -> None:
    limits = Limits(1000, has_encoder=True)
    given_options = {"structured_outputs": {"regex": "a"}, "decoder_start_token_id": 1}
    with pytest.raises(BadRequest, match="encoder-decoder"):
        check_options(given_options, 1, limits)


def test_records_keep_the_option_and_are_checked_again() -> None:
    # Given
    options = check_options({"structured_outputs": {"choice": ["a", "b"]}}, 10, LIMITS)
    assert Options.from_json(options.to_json()) == options
    check_record(Record("r", (1,), options, 0.0, 1.0), 100, 100)
    # When another client writes nonsense / Then
    broken = Options(structured_outputs='{"regex": 5}')
    with pytest.raises(BadRequest, match="structured_outputs"):
        check_record(Record("r", (1,), broken, 0.0, 1.0), 100, 100)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BadRequest, match="pip install llguidance"):
        check({"regex": "a"})
