"""Samples of one prompt: it is computed once, and each has the answer of a run alone."""

from __future__ import annotations

import pytest
from engine_fakes import Bench, answer, new_sequence, tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.scheduler import Scheduler
from skynet.errors import ShardFailed

PROMPT = (5, 6, 7, 8, 9)


def num_prefilled(bench: Bench, from_step: int = 0) -> int:
    """Tokens computed in rows of the prompt."""
    rows = [row for step in bench.shards.sent[from_step:] for row in step.rows]
    return sum(len(row.tokens) for row in rows if row.stop <= len(PROMPT))


def test_later_samples_copy_the_prompt_of_the_first() -> None:
    # Given three samples and another request on four slots
    bench = Bench(tiny_plan(num_slots=4))
    for name in ("a", "b", "c"):
        bench.engine.accept(new_sequence(name, PROMPT, sample_group="a"))
    bench.engine.accept(new_sequence("d", PROMPT))
    # When they run
    bench.run()
    # Then the samples' prompt was computed once, and its last token by each
    assert bench.notes.written == dict.fromkeys("abcd", answer(PROMPT, 4))
    assert num_prefilled(bench) == 2 * len(PROMPT) + 2
    sources = [(row.slot, row.source, row.start) for s in bench.shards.sent for row in s.rows]
    assert (1, 0, 4) in sources
    assert (2, 0, 4) in sources


def test_a_late_sample_copies_the_prompt_of_a_running_one() -> None:
    # Given two samples on two slots, of which the first ends first, and a third that waits
    bench = Bench(tiny_plan(num_slots=2))
    bench.engine.accept(new_sequence("a", PROMPT, sample_group="a", max_tokens=2))
    bench.engine.accept(new_sequence("b", PROMPT, sample_group="a", max_tokens=9))
    bench.engine.accept(new_sequence("c", PROMPT, sample_group="a", max_tokens=3))
    # When all have run
    bench.run()
    # Then each has its length, and the prompt was computed once
    assert {name: len(tokens) for name, tokens in bench.notes.written.items()} == {
        "a": 2,
        "b": 9,
        "c": 3,
    }
    assert num_prefilled(bench) == len(PROMPT) + 2


def test_a_sample_past_the_rope_switch_shares_no_prompt_with_one_before_it() -> None:
    # Given two samples, both of which pass the switch at seven tokens, and a third that waits
    bench, rope_switch = Bench(tiny_plan(num_slots=2)), 7
    for name, count in (("a", 5), ("b", 9), ("c", 2)):
        sequence = new_sequence(
            name, PROMPT, sample_group="a", max_tokens=count, rope_switch=rope_switch
        )
        bench.engine.accept(sequence)
    # When all have run
    bench.run()
    # Then their answers are those of runs alone
    assert bench.notes.written["b"] == answer(PROMPT, 9)
    assert bench.notes.written["c"] == answer(PROMPT, 2)
    # And rows past the switch carry their length: the first sample is computed again, the second
    # copies its prompt
    rows = [row for step in bench.shards.sent for row in step.rows]
    long = [row for row in rows if row.prompt_length > rope_switch]
    assert [(row.slot, row.start, row.source) for row in long[:3]] == [
        (0, 0, None),
        (0, 8, None),
        (1, 4, 0),
    ]
    assert all(row.stop <= rope_switch for row in rows if row not in long)
    # And the third has computed the prompt itself
    prompts = [row.slot for row in rows if (row.start, row.stop) == (0, len(PROMPT))]
    assert prompts == [0, 0]


def test_after_a_loss_the_prompt_is_computed_once_again() -> None:
    # Given three samples in mid-answer
    bench = Bench(tiny_plan(num_slots=3))
    for name in ("a", "b", "c"):
        bench.engine.accept(new_sequence(name, PROMPT, sample_group="a", max_tokens=6))
    for _ in range(4):
        bench.finish_oldest()
    # When all shards are lost
    sent = len(bench.shards.sent)
    bench.recover()
    bench.run()
    # Then the answers are those of an undisturbed run, and two took their prompt from the first
    assert bench.notes.written == dict.fromkeys("abc", answer(PROMPT, 6))
    first_rows = [row for step in bench.shards.sent[sent:] for row in step.rows]
    assert [row.start for row in first_rows if row.source is not None] == [4, 4]


def test_when_the_first_is_cancelled_the_next_computes_the_prompt() -> None:
    # Given two samples, the first in mid-prompt
    bench = Bench(tiny_plan(num_slots=2), max_batch_tokens=2)
    bench.engine.accept(new_sequence("a", PROMPT, sample_group="a"))
    bench.engine.accept(new_sequence("b", PROMPT, sample_group="a"))
    assert [row.slot for row in bench.shards.sent[0].rows] == [0]
    # When it is cancelled
    bench.engine.cancel("a")
    bench.run()
    # Then the other one has its answer
    assert bench.notes.written == {"b": answer(PROMPT, 4)}


def test_a_suspect_neither_shares_nor_receives_a_prompt() -> None:
    # Given two samples in a step that the shards cannot compute
    bench = Bench(tiny_plan(num_slots=2))
    bench.engine.accept(new_sequence("a", PROMPT, sample_group="a"))
    bench.engine.accept(new_sequence("b", PROMPT, sample_group="a"))
    bench.finish_oldest()
    number = min(bench.engine.in_flight)
    bench.engine.fail_step(bench.plan.epoch, number, ShardFailed("boom"))
    # When they go on
    sent = len(bench.shards.sent)
    bench.recover()
    bench.run()
    # Then each was cleared alone, by its tokens
    assert bench.notes.written == dict.fromkeys("ab", answer(PROMPT, 4))
    assert bench.shards.sent[sent].rows[0].source is None
    assert len(bench.shards.sent[sent].rows) == 1


@pytest.mark.parametrize("length", [1, 2])
def test_short_prompts(length: int) -> None:
    # Given samples of a prompt of one token, of which nothing is copied, and of two
    bench = Bench(tiny_plan(num_slots=2))
    for name in ("a", "b"):
        bench.engine.accept(new_sequence(name, PROMPT[:length], sample_group="a"))
    # When / Then
    bench.run()
    assert bench.notes.written == dict.fromkeys("ab", answer(PROMPT[:length], 4))


@given(
    groups=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    stages=st.integers(1, 3),
    num_slots=st.integers(1, 5),
    budget=st.integers(1, 9),
    data=st.data(),
)
def test_after_any_losses_each_sample_has_the_answer_of_a_run_alone(
    groups: list[int], stages: int, num_slots: int, budget: int, data: st.DataObject
) -> None:
    # Given samples of up to three prompts
    bench = Bench(tiny_plan(stages, num_slots=num_slots), max_batch_tokens=budget)
    prompts = [(1, 2, 3), (4, 5, 6, 7, 8, 9, 10), (11,)]
    lengths = [data.draw(st.integers(1, 5)) for _ in groups]
    for number, (sample_group, length) in enumerate(zip(groups, lengths, strict=True)):
        name = f"{sample_group}.{number}"
        sequence = new_sequence(
            name, prompts[sample_group], sample_group=f"{sample_group}", max_tokens=length
        )
        bench.engine.accept(sequence)
    # When steps come back, and plans are lost now and then
    for _ in range(data.draw(st.integers(0, 12))):
        if bench.engine.in_flight and data.draw(st.integers(0, 3)):
            bench.finish_oldest()
        else:
            bench.recover()
    bench.run()
    # Then nothing was missing in any slot (the shards raise if it is), and all is answered
    for number, (sample_group, length) in enumerate(zip(groups, lengths, strict=True)):
        assert bench.notes.written[f"{sample_group}.{number}"] == answer(
            prompts[sample_group], length
        )


def test_requests_without_a_sample_group_do_not_wait() -> None:
    # Given equal prompts without a sample group / Then none waits for another
    scheduler = Scheduler(4, 1, 100)
    for name in ("a", "b"):
        scheduler.add(new_sequence(name, PROMPT))
    assert [row.source for _, row in scheduler.next_batch()] == [None, None]
