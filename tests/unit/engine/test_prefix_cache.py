"""Prompts that begin alike: what one request has computed, others continue from or copy."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from engine_fakes import (
    TINY,
    Bench,
    FakeShards,
    answer,
    new_sequence,
    next_token,
    seq2seq_plan,
    tiny_plan,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from skynet.architecture.positions import Rope
from skynet.engine.slot_contents import MIN_PREFIX
from skynet.engine.slots import MAX_LOST
from skynet.errors import NotFinite, ShardFailed, ShardLost
from skynet.wire.step import Row, Step

SYSTEM = tuple(range(100, 140))
BAD = 13


def chat(*words: int) -> tuple[int, ...]:
    return SYSTEM + words


class Turns:
    """Requests to one bench, one after the other unless said otherwise."""

    def __init__(self, **options: Any) -> None:
        self.bench = Bench(tiny_plan(num_slots=4), **options)
        self._names = count()

    def ask(self, prompt: tuple[int, ...], run: bool = True, **options: Any) -> Any:
        """The sequence of a new request, answered."""
        sequence = new_sequence(str(next(self._names)), prompt, **{"max_tokens": 8, **options})
        self.bench.engine.accept(sequence)
        if run:
            self.bench.run()
            assert self.written(sequence) == answer(prompt, sequence.record.options.max_tokens)
        return sequence

    def written(self, sequence: Any) -> list[int]:
        return self.bench.notes.written[sequence.id]

    def rows_of(self, steps: int) -> list[Row]:
        """The rows since a number of steps."""
        return [row for step in self.bench.shards.sent[steps:] for row in step.rows]

    @property
    def steps(self) -> int:
        return len(self.bench.shards.sent)


def test_a_second_turn_computes_its_new_tokens_only() -> None:
    # Given a turn of a chat that is answered, and steps of few tokens
    turns = Turns(max_batch_tokens=6)
    first = turns.ask(chat(1, 2, 3))
    before = turns.steps
    # When the next turn has the first one, its answer and more
    prompt = (*chat(1, 2, 3), *turns.written(first), *range(20))
    second = turns.ask(prompt)
    # Then it continues in the first one's slot after the last token that was computed there, in
    # chunks
    known = len(prompt) - 20 - 1
    rows = turns.rows_of(before)
    assert [(row.slot, row.start, row.source) for row in rows[:2]] == [
        (0, known, None),
        (0, known + 6, None),
    ]
    assert sum(len(row.tokens) for row in rows) == 20 + 1 + 7
    assert (first.cached_tokens, second.cached_tokens) == (0, known)
    assert second.end().cached_tokens == known
    engine = turns.bench.engine
    assert engine.num_prompt_tokens == len(prompt) + len(first.record.prompt)
    assert engine.num_cached_tokens == known


def test_the_same_prompt_again_computes_its_last_token() -> None:
    # Given a request
    turns = Turns()
    turns.ask(chat(1, 2, 3), max_tokens=1)
    # When it comes again / Then one token is computed, for the logits
    again = turns.ask(chat(1, 2, 3), max_tokens=1)
    assert again.cached_tokens == len(again.record.prompt) - 1
    assert turns.rows_of(1)[0].tokens == (3,)


def test_short_common_beginnings_are_computed() -> None:
    # Given a request
    turns = Turns()
    turns.ask(chat(1))
    # When another has too few tokens with it / Then it takes none of them
    other = turns.ask((*SYSTEM[: MIN_PREFIX - 1], *range(50)))
    assert other.cached_tokens == 0
    enough = turns.ask((*SYSTEM[:MIN_PREFIX], *range(50, 90)))
    assert enough.cached_tokens == MIN_PREFIX


def test_a_running_requests_prompt_is_copied() -> None:
    # Given a request that runs
    turns = Turns()
    first = turns.ask(chat(1, 2), run=False, max_tokens=30)
    turns.bench.finish_oldest()
    turns.bench.finish_oldest()
    # When another begins alike
    before = turns.steps
    second = turns.ask(chat(7, 8))
    # Then its beginning is copied from the running one's slot
    row = next(row for row in turns.rows_of(before) if row.slot == 1)
    assert (row.source, row.start, row.tokens) == (0, len(SYSTEM), (7, 8))
    assert second.cached_tokens == len(SYSTEM)
    assert turns.written(first) == answer(chat(1, 2), 30)


def test_a_shared_beginning_is_copied_and_the_chat_it_is_from_is_kept() -> None:
    # Given a chat that goes on after the system prompt
    turns = Turns()
    tail = tuple(range(MAX_LOST + 1))
    first = turns.ask(chat(*tail))
    # When another chat has the system prompt, and then the first one goes on
    other = turns.ask(chat(*range(60, 70)))
    prompt = (*chat(*tail), *turns.written(first), 5)
    again = turns.ask(prompt)
    # Then the other one copied it, and the first one lost nothing
    assert other.cached_tokens == len(SYSTEM)
    assert again.cached_tokens == len(prompt) - 2
    assert [row.source for row in turns.rows_of(0) if row.source is not None] == [0]


def test_the_least_recently_used_slot_gives_way() -> None:
    # Given as many chats as slots, of which the first is used once more
    turns = Turns()
    prompts = [tuple(range(start, start + 40)) for start in (200, 300, 400, 500)]
    for prompt in (*prompts, prompts[0]):
        turns.ask(prompt)
    # When another comes / Then it takes the slot of the second
    before = turns.steps
    turns.ask(tuple(range(600, 640)))
    assert {row.slot for row in turns.rows_of(before)} == {1}
    hits = [turns.ask(prompt).cached_tokens for prompt in (prompts[0], prompts[2], prompts[3])]
    assert hits == [39] * 3


def test_of_equal_contents_one_gives_way_first() -> None:
    # Given two requests of the same prompt at the same time, then two others
    turns = Turns()
    turns.ask(chat(1), run=False)
    turns.ask(chat(1))
    others = [tuple(range(start, start + 40)) for start in (300, 400)]
    for prompt in others:
        turns.ask(prompt)
    # When one more comes / Then everything is still there
    turns.ask(tuple(range(500, 540)))
    hits = [turns.ask(prompt).cached_tokens for prompt in (chat(1), *others)]
    assert hits == [len(SYSTEM), 39, 39]


def test_a_burst_of_prompts_that_begin_alike_computes_the_beginning_once() -> None:
    # Given steps that hold half of the system prompt
    turns = Turns(max_batch_tokens=len(SYSTEM) // 2)
    # When four requests come at once
    sequences = [turns.ask(chat(word), run=word == 3, max_tokens=1) for word in range(4)]
    # Then the later ones copy it
    assert [each.cached_tokens for each in sequences] == [0, *[len(SYSTEM)] * 3]
    assert [turns.written(each) for each in sequences] == [answer(chat(w), 1) for w in range(4)]


def test_requests_of_different_salts_share_nothing() -> None:
    # Given a request with a salt
    turns = Turns()
    turns.ask(chat(1, 2), cache_salt="a")
    # When others come with another one, without one, and with the same
    hits = [turns.ask(chat(1, 2), cache_salt=salt).cached_tokens for salt in ("b", None, "a", "b")]
    # Then only equal ones are hits
    assert hits == [0, 0, len(SYSTEM) + 1, len(SYSTEM) + 1]


def test_without_the_cache_samples_still_copy_their_prompt() -> None:
    # Given an engine without a cache
    turns = Turns(prefix_cache=False)
    # When a prompt comes twice, then with samples
    hits = [turns.ask(chat(1)).cached_tokens, turns.ask(chat(1)).cached_tokens]
    before = turns.steps
    turns.ask(chat(1), run=False, sample_group="s")
    turns.ask(chat(1), sample_group="s")
    # Then only the second sample copies
    assert hits == [0, 0]
    sources = {row.source for row in turns.rows_of(before)}
    assert sources == {None, 0}


def test_a_new_epoch_forgets_all_slots_and_a_replay_fills_them() -> None:
    # Given a chat, and another that runs
    turns = Turns()
    first = turns.ask(chat(1))
    running = turns.ask(tuple(range(300, 340)), run=False, max_tokens=9)
    # When shards are lost, and the running one is replayed
    turns.bench.recover(tiny_plan(num_slots=2))
    turns.bench.run()
    # Then the chat is computed again, and the next turn of the other is not
    assert turns.ask((*chat(1), *turns.written(first))).cached_tokens == 0
    prompt = (*running.record.prompt, *turns.written(running))
    assert turns.ask(prompt).cached_tokens == len(prompt) - 1
    # And the counts of the replayed one are of its first computation
    assert turns.bench.engine.num_cached_tokens == len(prompt) - 1


def test_a_cancelled_request_leaves_what_its_last_finished_step_stored() -> None:
    # Given a prompt of two chunks, cancelled while the second one is in flight, or before it
    for in_flight in (True, False):
        turns = Turns(max_batch_tokens=30)
        sequence = turns.ask(chat(1), run=False)
        other = turns.ask(tuple(range(300, 330)), run=False)  # takes turns
        turns.bench.finish_oldest()
        assert sequence.in_flight
        if in_flight:
            turns.bench.engine.cancel(sequence.id)
        turns.bench.engine.cancel(other.id)
        turns.bench.run()
        # When it comes again / Then finished steps count
        assert turns.ask(chat(1)).cached_tokens == len(SYSTEM)


def fail_steps_with(bench: Bench, token: int) -> None:
    """Run; a step with the token finds NaN."""
    while bench.engine.in_flight:
        number = min(bench.engine.in_flight)
        step = bench.engine.in_flight[number].step
        rows = tuple(at for at, row in enumerate(step.rows) if token in row.tokens)
        if rows:
            for at in rows:  # as shards do
                row = step.rows[at]
                bench.shards.slots[row.slot][row.start :] = [0] * len(row.tokens)
            bench.engine.fail_step(bench.plan.epoch, number, NotFinite("NaN", rows))
        else:
            bench.finish_oldest()


def test_a_step_with_nan_leaves_the_tokens_before_it() -> None:
    # Given a chat, and a second turn that continues in its slot, in whose step NaN is found
    turns = Turns()
    first = turns.ask(chat(1))
    prompt = (*chat(1), *turns.written(first), BAD, 2)
    sent = turns.steps
    guilty = turns.ask(prompt, run=False)
    fail_steps_with(turns.bench, BAD)
    assert isinstance(turns.bench.notes.ended[guilty.id], NotFinite)
    # Then it was computed from its first token on when it ran alone, to tell the cause
    assert [row.start for row in turns.rows_of(sent)] == [len(prompt) - 3, 0]
    # And nobody continues from its slot
    assert turns.ask((*chat(1), *turns.written(first), 2)).cached_tokens == 0


def test_a_request_that_ends_with_nan_leaves_nothing() -> None:
    # Given a request with some tokens, whose next step finds NaN, twice
    turns = Turns()
    guilty = turns.ask(chat(1), run=False)
    for _ in range(3):
        turns.bench.finish_oldest()
    for _ in range(2):
        number = min(turns.bench.engine.in_flight)
        turns.bench.engine.fail_step(turns.bench.plan.epoch, number, NotFinite("NaN", (0,)))
    assert guilty.id in turns.bench.notes.ended
    # When its prompt comes again / Then all of it is computed
    assert turns.ask(chat(1)).cached_tokens == 0


def test_an_innocent_request_of_a_step_with_nan_copies_again() -> None:
    # Given a chat, and in one step a request that copies from it and one with NaN
    turns = Turns()
    turns.ask(chat(*range(60, 90)))
    turns.bench.engine.draining = True
    innocent = turns.ask(chat(7), run=False)
    turns.ask((BAD,), run=False)
    turns.bench.engine.go_on()
    # When they run
    fail_steps_with(turns.bench, BAD)
    # Then it has its answer, and copied in each step
    assert turns.written(innocent) == answer(chat(7), 8)
    assert innocent.cached_tokens == len(SYSTEM)
    assert [row.source for row in turns.rows_of(0) if row.source is not None] == [0, 0]


def test_suspects_neither_take_nor_give() -> None:
    # Given a running request whose step failed in a shard, and steps that hold a chunk of it
    turns = Turns(max_batch_tokens=20)
    suspect = turns.ask(chat(*range(30)), run=False, max_tokens=40)
    turns.bench.engine.fail_step(turns.bench.plan.epoch, 0, ShardFailed("stage0.shard0"))
    turns.bench.recover()
    turns.bench.finish_oldest()
    assert suspect.suspect
    other = turns.ask(chat(5), run=False, max_tokens=40)
    turns.bench.finish_oldest()
    assert suspect.mode.computed >= MIN_PREFIX
    assert other.in_flight
    assert {row.source for row in turns.rows_of(0)} == {None}
    # When it has succeeded once / Then its prompt is like any other
    turns.bench.run()
    assert not suspect.suspect
    assert turns.ask(chat(*range(30))).cached_tokens == len(SYSTEM) + 29
    assert turns.written(other) == answer(chat(5), 40)


def test_a_beam_search_takes_its_prefix_from_a_slot() -> None:
    # Given a chat, and the beams of a search without a cache
    alone = Bench(tiny_plan(num_slots=4), prefix_cache=False)
    alone.engine.accept(new_sequence("beams", chat(1, 2), num_beams=3, max_tokens=6))
    alone.run()
    turns = Turns()
    turns.ask(chat(1), max_tokens=1)
    # When a search begins alike
    search = new_sequence("beams", chat(1, 2), num_beams=3, max_tokens=6)
    turns.bench.engine.accept(search)
    turns.bench.run()
    # Then it finds the same, and has computed one token of its prompt
    assert turns.bench.notes.beams == alone.notes.beams
    assert search.cached_tokens == len(SYSTEM) + 1
    # And its first beams' tokens are there for others
    best = tuple(turns.bench.notes.written["beams"])
    assert turns.ask((*chat(1, 2), *best[:2], 3)).cached_tokens >= len(SYSTEM) + 2


def test_sequences_on_different_sides_of_a_rope_switch_share_nothing() -> None:
    # Given a request that passes the switch, so that all its keys are rotated differently
    turns, switch = Turns(), len(SYSTEM) + 6
    turns.ask(chat(1), max_tokens=12, rope_switch=switch)
    # When others come on both sides
    short = turns.ask(chat(1, 2), max_tokens=2, rope_switch=switch)
    long = turns.ask(chat(*range(8)), max_tokens=2, rope_switch=switch)
    again = turns.ask(chat(1, 3), max_tokens=2, rope_switch=switch)
    # Then each takes tokens of its side
    assert (short.cached_tokens, long.cached_tokens) == (0, len(SYSTEM))
    assert again.cached_tokens == len(SYSTEM) + 1


def test_a_dynamic_rope_is_shared_up_to_its_pretraining_length() -> None:
    # Given a rope that rotates longer sequences by their length
    limit = len(SYSTEM) + 4
    rope = Rope(8, "dynamic", original_positions=limit)
    arch = replace(TINY, ropes=(rope,) * TINY.num_layers)
    turns = Turns()
    turns.ask(chat(1), max_tokens=1, arch=arch)
    # When a prompt within it and one beyond it come
    within = turns.ask(chat(1, 2), max_tokens=1, arch=arch)
    beyond = turns.ask(chat(1, 2, 3, 4, 5), max_tokens=1, arch=arch)
    again = turns.ask(chat(1, 2, 3, 4, 5), max_tokens=1, arch=arch)
    # Then only the first is a hit
    hits = [each.cached_tokens for each in (within, beyond, again)]
    assert hits == [len(SYSTEM) + 1, 0, 0]


def test_encoder_decoders_and_encoders_cannot_be_continued() -> None:
    # Given encoder-decoder requests of one prompt
    bench = Bench(seq2seq_plan(num_slots=2))
    start = tuple(range(30, 60))
    assert TINY.continues_anywhere
    assert not replace(TINY, encoder=TINY).continues_anywhere
    assert not replace(TINY, bidirectional=True).continues_anywhere
    arch = replace(TINY, encoder=TINY)
    for name in ("a", "b"):
        bench.engine.accept(
            new_sequence(name, start, decoder_start_token_id=2, max_tokens=40, arch=arch)
        )
        bench.run()
    # Then the second one's decoder starts anew
    assert bench.engine.num_cached_tokens == 0
    starts = [row.start for step in bench.shards.sent for row in step.rows if row.encoder_kv]
    assert starts == [*range(40)] * 2


class Watched(FakeShards):
    """Shards that refuse a step that writes to a slot which a step in flight copies from.

    On a later stage that step could come first.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.plan.num_shards)
        self.bench = bench

    def send(self, step: Step) -> None:
        flights = self.bench.engine.in_flight.values()
        others = [flight.step for flight in flights if flight.step is not step]
        read = {row.source for other in others for row in other.rows}
        written = {row.slot for row in step.rows}
        if read & written:
            raise AssertionError(f"{step} writes to {read & written}, which are read")
        super().send(step)

    def check_contents(self) -> None:
        """What the engine believes of slots is what was stored."""
        contents = self.bench.engine.scheduler.slots.contents
        for slot, stored in self.slots.items():
            content = contents[slot]
            assert list(content.tokens[: content.num_valid]) == stored[: content.num_valid]


def watched(stages: int, num_slots: int, budget: int) -> Bench:
    bench = Bench(tiny_plan(stages=stages, num_slots=num_slots), max_batch_tokens=budget)
    bench.shards = Watched(bench)
    bench.engine.carrier = bench.shards
    return bench


def test_a_slot_that_is_copied_from_is_not_written_to() -> None:
    # Given two stages, and a running request
    bench = watched(stages=2, num_slots=3, budget=512)
    bench.engine.accept(new_sequence("a", chat(1), max_tokens=6))
    bench.finish_oldest()
    # When others copy from it, while it would have its next token
    for name in ("b", "c"):
        bench.engine.accept(new_sequence(name, chat(2), max_tokens=6))
    bench.run()
    # Then nothing overtook
    assert bench.notes.written["b"] == answer(chat(2), 6)
    assert any(row.source is not None for step in bench.shards.sent for row in step.rows)


BRANCHES = st.lists(st.integers(0, 1), max_size=4).map(
    lambda turns: tuple(next_token([turn, at]) for turn in turns for at in range(12))
)
REQUESTS = st.tuples(
    st.sampled_from([SYSTEM, SYSTEM[:30], ()]),
    BRANCHES,
    st.integers(1, 6),  # tokens
    st.sampled_from([None, None, "salt"]),
    st.sampled_from([1, 1, 2]),  # beams
    st.integers(0, 2),  # sample group
)
EVENTS = st.lists(
    st.sampled_from(["come", "come", "step", "step", "step", "cancel", "nan", "lose", "fail"]),
    max_size=60,
)


@settings(deadline=None)
@given(
    st.integers(1, 3),
    st.integers(2, 5),
    st.integers(3, 60),
    st.lists(REQUESTS, min_size=1, max_size=12),
    EVENTS,
)
def test_any_requests_have_the_answers_of_runs_alone(
    stages: int, num_slots: int, budget: int, requests: list[Any], events: list[str]
) -> None:
    # Given requests that begin alike
    bench = watched(stages, num_slots, budget)
    waiting = []
    for number, (system, branch, tokens, salt, beams, group) in enumerate(requests):
        options = {"num_beams": 2} if beams == 2 else {}
        waiting.append(
            new_sequence(
                str(number),
                (*system, *branch, number % 2),
                max_tokens=tokens,
                cache_salt=salt,
                sample_group=f"{group}{system}{branch}{number % 2}" if group else "",
                **options,
            )
        )
    sequences = list(waiting)
    cancelled = set()
    # When they come, are cancelled, and steps and shards fail
    for event in events:
        oldest = min(bench.engine.in_flight, default=None)
        if event == "come" and waiting:
            bench.engine.accept(waiting.pop(0))
        elif event == "cancel" and bench.engine.sequences:
            cancelled.add(next(iter(bench.engine.sequences)))
            bench.engine.cancel(next(iter(bench.engine.sequences)))
        elif event == "lose":
            bench.recover()
        elif oldest is not None and event == "step":
            bench.finish_oldest()
        elif oldest is not None and event == "fail":
            bench.engine.fail_step(bench.plan.epoch, oldest, ShardLost("gone"))
            bench.recover()
        elif oldest is not None and event == "nan":
            rows = bench.engine.in_flight[oldest].step.rows
            if not bench.engine.in_flight[oldest].sequences[0].by_layer:
                for row in rows:
                    bench.shards.slots[row.slot][row.start :] = [0] * len(row.tokens)
                bench.engine.fail_step(bench.plan.epoch, oldest, NotFinite("NaN", (0,)))
        bench.shards.check_contents()
    for sequence in waiting:
        bench.engine.accept(sequence)
    bench.run()
    # Then each has the answer of a run alone
    for sequence in sequences:
        if sequence.id in cancelled or sequence.record.options.num_beams > 1:
            continue
        expected = answer(sequence.record.prompt, sequence.record.options.max_tokens)
        assert bench.notes.written[sequence.id] == expected
        assert sequence.cached_tokens < len(sequence.record.prompt)
    slots = bench.engine.scheduler.slots
    assert slots.free == set(range(num_slots))
    assert not any(slots.contents[slot].num_readers for slot in range(num_slots))


@pytest.mark.parametrize("num_beams", [2, 3])
def test_beams_with_a_cache_are_those_without(num_beams: int) -> None:
    # Given searches that begin alike
    found = []
    for prefix_cache in (True, False):
        bench = Bench(tiny_plan(stages=2, num_slots=7), prefix_cache=prefix_cache)
        for name, word in (("a", 1), ("b", 2), ("c", 1)):
            bench.engine.accept(new_sequence(name, chat(word), num_beams=num_beams, max_tokens=5))
            bench.finish_oldest()
        bench.run()
        found.append(bench.notes.beams)
    # Then they are the same with and without a cache
    assert found[0] == found[1]
