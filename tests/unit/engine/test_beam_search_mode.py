"""Beam search in the engine: slots for all beams, few copies, the same result after a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_fakes import FEW, Bench, answer, few_logits, new_sequence, seq2seq_plan, tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.scheduler import Scheduler
from skynet.errors import RequestCancelled, RequestTimeout, StepFailed

PROMPT = (5, 6, 7, 8, 9)


def greedy_score(prompt: tuple[int, ...], tokens: list[int]) -> float:
    """The sum of log-probabilities of an answer."""
    total = 0.0
    for count, token in enumerate(tokens):
        logits = few_logits([*prompt, *tokens[:count]]).astype(np.float64)
        total += float(logits[token] - np.log(np.exp(logits).sum()))
    return total


def every_answer(prompt: tuple[int, ...], count: int) -> list[tuple[float, tuple[int, ...]]]:
    """All answers of this many tokens by their score, best first."""
    hypotheses: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for _ in range(count):
        longer = []
        for score, tokens in hypotheses:
            logits = few_logits([*prompt, *tokens]).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum())
            longer += [(score + float(logprobs[t]), (*tokens, t)) for t in range(FEW)]
        hypotheses = sorted(longer, reverse=True)[: FEW**2]
    return hypotheses


def test_as_many_beams_as_tokens_give_the_best_of_all_answers() -> None:
    # Given an exhaustive search for answers of two tokens
    bench = Bench(tiny_plan(num_slots=FEW))
    bench.engine.accept(new_sequence("a", PROMPT, num_beams=FEW, max_tokens=2))
    bench.run()
    # Then its hypotheses are the best answers, scored per token
    best = every_answer(PROMPT, 2)[:5]
    beams = bench.notes.beams["a"]
    assert [tuple(beam["token_ids"]) for beam in beams[:5]] == [tokens for _, tokens in best]
    assert [beam["score"] for beam in beams[:5]] == pytest.approx([s / 2 for s, _ in best])
    assert bench.notes.written["a"] == list(best[0][1])
    assert bench.notes.ended["a"] == "length"


def test_a_search_waits_until_there_are_slots_for_all_beams() -> None:
    # Given three slots, one of which is taken, a search with three beams, and a request behind it
    bench = Bench(tiny_plan(num_slots=3))
    bench.engine.accept(new_sequence("first", [1], max_tokens=2))
    bench.engine.accept(new_sequence("search", PROMPT, num_beams=3, max_tokens=3))
    bench.engine.accept(new_sequence("last", [2], max_tokens=1))
    # When they run / Then no request overtakes the search
    bench.run()
    order = list(bench.notes.ended)
    assert order == ["first", "search", "last"]
    assert bench.notes.written["last"] == answer([2], 1)
    assert sorted(bench.engine.scheduler.slots.free) == [0, 1, 2]


def test_the_prompt_is_computed_once_in_chunks() -> None:
    # Given a search over a long prompt with steps of two tokens
    bench = Bench(tiny_plan(num_slots=4), max_batch_tokens=2)
    bench.engine.accept(new_sequence("a", PROMPT, num_beams=4, max_tokens=3))
    # When it runs / Then rows before the first choice are all of one slot
    bench.run()
    rows = [[(r.slot, r.start, len(r.tokens)) for r in step.rows] for step in bench.shards.sent]
    assert rows[:3] == [[(0, 0, 2)], [(0, 2, 2)], [(0, 4, 1)]]
    assert [len(step) for step in rows[3:]] == [4, 4]
    assert all(length == 1 for step in rows[3:] for _, _, length in step)


def test_one_child_of_a_beam_stays_in_its_slot() -> None:
    # Given a search
    bench = Bench(tiny_plan(num_slots=4))
    bench.engine.accept(new_sequence("a", PROMPT, num_beams=4, max_tokens=30))
    bench.run()
    # Then only its siblings are copied
    for step in bench.shards.sent[2:]:
        copied = [row for row in step.rows if row.source is not None]
        kept = {row.slot for row in step.rows if row.source is None}
        assert {row.source for row in copied} <= kept
        assert len({row.slot for row in step.rows}) == len(step.rows) == 4


def test_searches_can_be_cancelled_and_time_out() -> None:
    # Given two searches under way
    bench = Bench(tiny_plan(num_slots=4))
    bench.engine.accept(new_sequence("a", PROMPT, num_beams=2, max_tokens=50))
    bench.engine.accept(new_sequence("b", PROMPT, num_beams=2, max_tokens=50, deadline=200.0))
    for _ in range(3):
        bench.finish_oldest()
    # When one is cancelled, and the other's time is over
    bench.engine.cancel("a")
    bench.finish_oldest()
    bench.now = 201.0
    bench.engine.tick()
    bench.run()
    # Then nothing of them was written, and their slots are free
    assert isinstance(bench.notes.ended["a"], RequestCancelled)
    assert isinstance(bench.notes.ended["b"], RequestTimeout)
    assert bench.notes.written == {}
    assert sorted(bench.engine.scheduler.slots.free) == [0, 1, 2, 3]


def test_a_search_without_allowed_tokens_ends_with_an_error() -> None:
    # Given a search in which every token that the model knows is forbidden
    bench = Bench()
    forbidden = tuple(range(FEW))
    bench.engine.accept(new_sequence("a", PROMPT, num_beams=2, suppress_tokens=forbidden))
    bench.run()
    # Then it says so
    error = bench.notes.ended["a"]
    assert isinstance(error, StepFailed)
    assert "every token is forbidden" in str(error)


def test_a_search_without_continuations_answers_with_its_finished_hypotheses() -> None:
    # Given a search that may say 2 or 3 once each, of which 3 ends an answer
    bench = Bench()
    forbidden = tuple(token for token in range(FEW) if token not in (2, 3))
    rules = {"suppress_tokens": forbidden, "bad_words_ids": ((2, 2), (2, 3))}
    bench.engine.accept(new_sequence("a", PROMPT, num_beams=2, end_ids=[3], **rules))
    bench.run()
    # Then that is the answer
    assert bench.notes.written["a"] == [3]
    assert bench.notes.ended["a"] == "stop"


def test_ignored_end_tokens_are_still_banned_by_min_new_tokens() -> None:
    # Given a search that ignores end tokens, with a minimum number of tokens
    bench = Bench(tiny_plan(num_slots=2))
    ends = list(range(FEW // 2))
    options = {"num_beams": 2, "max_tokens": 6, "min_new_tokens": 4, "end_ids": ends}
    bench.engine.accept(new_sequence("a", PROMPT, ignore_eos=True, **options))
    bench.run()
    # Then no end token comes before that
    answer = bench.notes.written["a"]
    assert len(answer) == 6
    assert not set(answer[:4]) & set(ends)
    assert bench.notes.ended["a"] == "length"


def test_a_replay_is_cut_into_steps_like_a_prompt() -> None:
    # Given two searches with many tokens, and shards that lost everything
    bench = Bench(tiny_plan(num_slots=8), max_batch_tokens=6)
    for name in "ab":
        bench.engine.accept(new_sequence(name, PROMPT, num_beams=4, max_tokens=30))
    for _ in range(30):
        bench.finish_oldest()
    bench.recover()
    before = len(bench.shards.sent)
    # When they are computed again
    bench.run()
    steps = bench.shards.sent[before:]
    replayed = [step for step in steps if all(row.logits_request is None for row in step.rows)]
    # Then no step is over the budget, and no token is computed twice
    assert max(step.num_tokens for step in steps if step in replayed) <= 6
    assert max(step.num_tokens for step in steps) <= 8
    assert len(replayed) > 10
    spans = [(r.slot, place) for s in replayed for r in s.rows for place in range(r.start, r.stop)]
    assert len(spans) == len(set(spans))
    assert len(bench.notes.written["a"]) == len(bench.notes.written["b"]) == 30


def test_a_search_counts_as_one_where_a_request_is_run_alone() -> None:
    # Given a search that is suspected, and another
    scheduler = Scheduler(4, 1, 100)
    for name in "ab":
        scheduler.add(new_sequence(name, PROMPT, num_beams=2))
    batch = scheduler.next_batch()
    for sequence, _ in batch:
        sequence.in_flight = False
    batch[0][0].suspect = True
    # Then it has a batch alone, with all its rows
    assert {sequence.id for sequence, _ in scheduler.next_batch()} == {"a"}


SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 2, "max_tokens": 6},
    {"num_beams": 3, "max_tokens": 5, "end_ids": [1, 2, 3, 4, 5], "early_stopping": True},
    {"num_beams": 4, "max_tokens": 7, "end_ids": [7, 8, 9], "length_penalty": 2.0},
    {"num_beams": 2, "max_tokens": 8, "end_ids": [10], "early_stopping": "never"},
    {"num_beams": 3, "max_tokens": 6, "repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
]


@given(
    chosen=st.lists(st.sampled_from(SEARCHES), min_size=1, max_size=4),
    events=st.lists(st.sampled_from(["come", "step", "step", "lose"]), max_size=40),
    has_encoder=st.booleans(),
    stages=st.integers(1, 3),
    budget=st.integers(1, 20),
)
def test_a_search_has_the_same_result_alone_and_among_others_with_losses(
    chosen: list[dict[str, Any]], events: list[str], has_encoder: bool, stages: int, budget: int
) -> None:
    # Given searches of all kinds, with and without an encoder, and the result of each alone
    plan = seq2seq_plan(stages, num_slots=5) if has_encoder else tiny_plan(stages, num_slots=5)
    start = {"decoder_start_token_id": 3} if has_encoder else {}
    prompts = [tuple(range(n, n + 4)) for n in range(len(chosen))]
    alone = []
    for prompt, options in zip(prompts, chosen, strict=True):
        single = Bench(plan)
        single.engine.accept(new_sequence("a", prompt, **options, **start))
        single.run()
        alone.append((single.notes.written["a"], single.notes.beams["a"]))
    # When they come, and shards lose everything, at any time
    bench = Bench(plan, max_batch_tokens=budget)
    waiting = [
        new_sequence(str(n), prompt, **options, **start)
        for n, (prompt, options) in enumerate(zip(prompts, chosen, strict=True))
    ]
    bench.live_through(events, waiting)
    # Then each result is the same
    for number, (tokens, beams) in enumerate(alone):
        assert bench.notes.written[str(number)] == tokens
        assert bench.notes.beams[str(number)] == beams
    assert sorted(bench.engine.scheduler.slots.free) == list(range(5))


def test_the_best_hypothesis_of_one_token_is_the_greedy_one() -> None:
    # Given a search of one token
    bench = Bench(tiny_plan(num_slots=2))
    bench.engine.accept(new_sequence("a", PROMPT, num_beams=2, max_tokens=1))
    bench.run()
    # Then it is the likeliest token, and its score the log-probability
    best = int(few_logits(PROMPT).argmax())
    assert bench.notes.written["a"] == [best]
    assert bench.notes.beams["a"][0]["score"] == pytest.approx(greedy_score(PROMPT, [best]))
