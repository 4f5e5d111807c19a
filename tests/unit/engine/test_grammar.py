"""Answers that follow a grammar, in the engine without shards."""

from __future__ import annotations

import json
import resource
from typing import Any

import numpy as np
import pytest
from engine_fakes import Bench, new_sequence
from made_tokenizers import byte_level
from tokenizers import Tokenizer

from skynet.engine.grammar import Constraint, Grammars
from skynet.engine.processors import NO_RULES
from skynet.engine.sequence import Sequence
from skynet.errors import BadRequest
from skynet.request.structured import structured_text
from skynet.wire.step import Best, Candidates

BACKEND = byte_level("<s>", "</s>")
TOKENIZER = Tokenizer.from_str(BACKEND)
VOCAB_SIZE = 410
END = 1
KEYS = {
    "type": "object",
    "properties": {"first name": {"enum": ["Ada", "Bo"]}},
    "required": ["first name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(BACKEND, VOCAB_SIZE, {END})


def constraint_of(grammars: Grammars, value: dict[str, Any]) -> Constraint:
    return Constraint(grammars.compile(structured_text(value)).result(), VOCAB_SIZE)


def constrained(
    grammars: Grammars, value: dict[str, Any], name: str = "r", **more: Any
) -> Sequence:
    sequence = new_sequence(name, [5, 6, 7], end_ids=[END], **{"max_tokens": 60, **more})
    sequence.output.constraint = constraint_of(grammars, value)
    return sequence


def text_of(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids))


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def run(bench: Bench, sequence: Sequence, wishes: list[int]) -> None:
    """Answer one request; its model prefers these tokens, then token 1."""
    bench.shards._run = lambda row: _candidates(bench, row, sequence, wishes)  # type: ignore[method-assign]
    bench.engine.accept(sequence)
    bench.run()


def _candidates(bench: Bench, row: Any, sequence: Sequence, wishes: list[int]) -> Any:
    slot = bench.shards.slots.setdefault(row.slot, [])
    assert row.start <= len(slot)
    slot[row.start :] = row.tokens
    if row.logits_request is None:
        return []
    at = len(slot) - 3
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[wishes[at] if at < len(wishes) else END] = 9.0
    ids = np.arange(VOCAB_SIZE, dtype=np.int32)
    best = Best(ids[:0], logits[:0], float(np.log(np.exp(logits).sum())))
    halves = [ids[::2], ids[1::2]]
    return [Candidates(half, logits[half], 9.0, 1.0, best) for half in halves]


def test_a_wish_within_the_grammar_is_followed_and_ends_the_answer(grammars: Grammars) -> None:
    # Given a model that wants valid JSON
    wanted = ids_of('{"first name":"Bo"}')
    bench, sequence = Bench(), constrained(grammars, {"json": KEYS})
    # When
    run(bench, sequence, wanted)
    # Then the answer ends with it, without an end token, in fewer steps than tokens
    assert bench.notes.written["r"] == sequence.output.tokens == wanted
    assert bench.notes.ended["r"] == "stop"
    assert len(bench.shards.sent) < len(wanted) / 2
    # And every token has been computed at its place
    last = bench.shards.slots[0]
    assert last == [5, 6, 7, *wanted][: len(last)]


def test_log_probabilities_need_a_step_for_each_token(grammars: Grammars) -> None:
    # Given
    wanted = ids_of('{"first name":"Bo"}')
    bench, sequence = Bench(), constrained(grammars, {"json": KEYS}, logprobs=0)
    # When
    run(bench, sequence, wanted)
    # Then
    assert sequence.output.tokens == wanted
    assert len(sequence.output.logprobs) == len(wanted) == len(bench.shards.sent)


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_an_answer_that_is_cut_has_its_number_of_tokens(
    grammars: Grammars, max_tokens: int
) -> None:
    # Given
    wanted = ids_of('{"first name":"Bo"}')
    bench = Bench()
    # When
    run(bench, constrained(grammars, {"json": KEYS}, max_tokens=max_tokens), wanted)
    # Then
    assert bench.notes.written["r"] == wanted[:max_tokens]
    assert bench.notes.ended["r"] == ("stop" if max_tokens >= len(wanted) else "length")


def test_an_end_token_comes_only_where_the_grammar_may_end(grammars: Grammars) -> None:
    # Given a model that wants to end at once
    bench = Bench()
    # When
    run(bench, constrained(grammars, {"regex": "[0-9]{2,4}"}), [])
    # Then it says what it must, and ends
    *digits, end = bench.notes.written["r"]
    assert text_of(digits).isdigit()
    assert (len(text_of(digits)) >= 2, end) == (True, END)
    assert bench.notes.ended["r"] == "stop"


@pytest.mark.parametrize("written", range(8))
def test_an_answer_is_continued_from_any_token(grammars: Grammars, written: int) -> None:
    # Given an answer whose first tokens another orchestrator has written
    wanted = ids_of('{"first name":"Bo"}')
    bench, sequence = Bench(), constrained(grammars, {"json": KEYS})
    sequence.output.restore(wanted[:written])
    bench.notes.written["r"] = wanted[:written]
    # When
    run(bench, sequence, wanted)
    # Then
    assert bench.notes.written["r"] == wanted
    assert bench.notes.ended["r"] == "stop"


def test_a_complete_answer_has_ended_when_it_is_restored(grammars: Grammars) -> None:
    sequence = constrained(grammars, {"json": KEYS})
    sequence.output.restore(ids_of('{"first name":"Ada"}'))
    assert sequence.finish_reason == "stop"


def test_bans_apply_within_the_grammar_and_may_leave_nothing(grammars: Grammars) -> None:
    # Given a grammar of two letters
    a, b = ids_of("a")[0], ids_of("b")[0]
    bench = Bench()
    run(bench, constrained(grammars, {"regex": "a|b"}, suppress_tokens=(a,)), [a])
    assert bench.notes.written["r"] == [b]
    # When both are banned / Then the request ends with an error that says so
    bench = Bench()
    run(bench, constrained(grammars, {"regex": "a|b"}, suppress_tokens=(a, b)), [a])
    assert "every token is forbidden" in str(bench.notes.ended["r"])


def test_a_grammar_that_exceeds_limits_on_the_way_ends_its_request_only(grammars: Grammars) -> None:
    # Given a grammar that compiles, and whose first step is too large
    bench = Bench()
    big = 'start: "a" x{1000000}\nx: "a"{1000}'
    sequence = constrained(grammars, {"grammar": big})
    # When
    run(bench, sequence, ids_of("a") * 30)
    # Then
    error = bench.notes.ended["r"]
    assert isinstance(error, BadRequest), error
    assert "structured_outputs" in str(error)


def test_tokens_that_the_tokenizer_lacks_are_never_allowed(grammars: Grammars) -> None:
    allowed = constraint_of(grammars, {"regex": r"[\s\S]*"}).next_tokens()
    padding = np.arange(TOKENIZER.get_vocab_size(), VOCAB_SIZE)
    assert not allowed.has(padding).any()
    assert allowed.has(np.array([END])).all()
    assert not allowed.has(np.array([0, VOCAB_SIZE + 5])).any()  # <s>, and no token


def test_a_complete_grammar_leaves_the_rules_alone() -> None:
    assert NO_RULES.ids == ()
    assert not NO_RULES.is_listed


@pytest.mark.parametrize(
    "value",
    [
        {"json": {"$ref": "#"}},
        {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 10**8}},
        {"json": {"enum": [f"x{n}" for n in range(6000)]}},
        {"json": {"properties": {f"p{n}": {"type": "string"} for n in range(1500)}}},
        {"json": {"allOf": [{"pattern": f"^(a|b)*a.{{{n}}}$"} for n in range(8)]}},
        {
            "json": {
                "anyOf": [
                    {"properties": {f"p{n}": {"type": "string"}}, "required": [f"p{n}"]}
                    for n in range(600)
                ]
            }
        },
        {
            "json": {
                "$defs": {
                    **{f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(25)},
                    "d25": {"type": "null"},
                },
                "$ref": "#/$defs/d0",
            }
        },
        {"regex": "((((a{1,1000}){1,1000}){1,1000}){1,1000})"},
        {"regex": "(.*a){50}.*"},
        {"regex": "[01]*1[01]{50}"},
        {"regex": "(?s)[ab]*a.{20}[ab]*a.{300}"},
        {"grammar": "start: start"},
        {"grammar": 'start: start start | "a" | ""'},
        {"grammar": 'start: a\na: a a a | "a" | "b"'},
    ],
)
def test_hostile_grammars_are_refused_or_finish_within_bounded_memory(
    grammars: Grammars, value: dict[str, Any]
) -> None:
    # Given
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng, problem = np.random.default_rng(0), ""
    # When
    try:
        constraint = constraint_of(grammars, value)
        for _ in range(60):
            flags = constraint.next_tokens().has(np.arange(VOCAB_SIZE))
            if constraint.push(int(rng.choice(np.flatnonzero(flags)))):
                break
    except BadRequest as error:
        problem = str(error)
    # Then
    assert len(problem) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB


def test_a_model_without_a_tokenizer_refuses_grammars() -> None:
    future = Grammars(None, VOCAB_SIZE, {END}).compile(structured_text({"regex": "a"}), 5.0)
    with pytest.raises(BadRequest, match="no tokenizer"):
        future.result()


def test_a_tokenizer_that_llguidance_cannot_use_refuses_grammars() -> None:
    future = Grammars('{"nonsense": 1}', VOCAB_SIZE, {END}).compile('{"regex": "a"}', 5.0)
    with pytest.raises(BadRequest, match="cannot use this model's tokenizer"):
        future.result()


def test_a_grammar_is_compiled_once_for_all_its_requests(grammars: Grammars) -> None:
    # Given
    text = structured_text({"json": KEYS})
    # When
    first, second = grammars.compile(text), grammars.compile(json.loads(json.dumps(text)))
    # Then both begin at the first token
    assert first is second
    one, other = (Constraint(each.result(), VOCAB_SIZE) for each in (first, second))
    one.push(ids_of("{")[0])
    assert other.next_tokens().allowed is not None
    assert other.next_tokens().has(np.array(ids_of("{"))).all()
