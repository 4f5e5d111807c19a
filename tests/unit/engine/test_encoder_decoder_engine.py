"""Encoder-decoders in the engine: each prompt is encoded once, in encoder steps."""

from __future__ import annotations

from itertools import pairwise

from engine_fakes import Bench, answer, new_sequence, seq2seq_plan
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.sequence import Sequence
from skynet.errors import ShardFailed

PROMPT = (5, 6, 7, 8, 9)
START = 3


def translation(name: str, prompt: tuple[int, ...] = PROMPT, **options: object) -> Sequence:
    return new_sequence(name, prompt, decoder_start_token_id=START, **options)


def expected(prompt: tuple[int, ...], count: int) -> list[int]:
    """The fake model's answer: it depends on the encoder's input and the decoder's tokens."""
    return answer((*prompt, START), count)


def test_encoder_steps_start_at_layer_0_and_decoder_steps_at_the_decoder() -> None:
    # Given a plan of two encoder layers and three of a decoder, in two stages
    bench = Bench(seq2seq_plan(2))
    # When a request runs
    bench.engine.accept(translation("a", max_tokens=3))
    bench.run()
    # Then its prompt is one encoder row, and each token one step of the decoder's layers
    assert bench.notes.written == {"a": expected(PROMPT, 3)}
    assert [(step.start, [r.tokens for r in step.rows]) for step in bench.shards.sent] == [
        (0, [PROMPT]),
        (2, [(START,)]),
        (2, [(expected(PROMPT, 1)[0],)]),
        (2, [(expected(PROMPT, 2)[1],)]),
    ]


def test_encoder_steps_alternate_with_decoder_steps() -> None:
    # Given a request that is being answered, and others that come one after the other
    bench = Bench(seq2seq_plan(num_slots=8))
    bench.engine.accept(translation("0", max_tokens=9))
    bench.finish_oldest()
    for name in "123":
        bench.engine.accept(translation(name, (*PROMPT, int(name)), max_tokens=2))
        bench.finish_oldest()
    bench.run()
    # Then no two encoder steps follow each other, and none waits for more than one step
    starts = [step.start for step in bench.shards.sent]
    assert (0, 0) not in pairwise(starts)
    assert starts.count(0) < 4 + 1
    assert bench.notes.written["2"] == expected((*PROMPT, 2), 2)


def test_encoder_rows_are_never_cut() -> None:
    # Given a prompt longer than a step of 7 tokens, and shorter ones
    bench = Bench(seq2seq_plan(num_slots=4), max_batch_tokens=7)
    prompts = {"a": tuple(range(20)), "b": (1, 2, 3), "c": (4, 5, 6), "d": (7, 8, 9)}
    for name, prompt in prompts.items():
        bench.engine.accept(translation(name, prompt))
    # When they run / Then each is one encoder row, the shortest first within a step
    bench.run()
    assert bench.notes.written == {name: expected(p, 4) for name, p in prompts.items()}
    encoded = [[r.tokens for r in step.rows] for step in bench.shards.sent if step.start == 0]
    assert encoded == [[prompts["a"]], [prompts["b"], prompts["c"]], [prompts["d"]]]


def test_samples_of_a_prompt_share_encoder_kv() -> None:
    # Given three samples on two slots
    bench = Bench(seq2seq_plan(num_slots=2))
    for name, count in (("a", 2), ("b", 6), ("c", 3)):
        bench.engine.accept(translation(name, sample_group="a", max_tokens=count))
    # When they run
    bench.run()
    # Then the encoder ran once, for one place
    assert bench.notes.written["c"] == expected(PROMPT, 3)
    rows = [row for step in bench.shards.sent for row in step.rows]
    assert [row.tokens for row in rows if row.encoder_kv is None] == [PROMPT]
    assert {row.encoder_kv for row in rows} == {None, (0, len(PROMPT))}


def test_a_place_is_free_when_the_last_of_its_users_has_ended() -> None:
    # Given two samples, one of which ends early, and a stranger that waits for its slot
    bench = Bench(seq2seq_plan(num_slots=2))
    bench.engine.accept(translation("a", sample_group="a", max_tokens=1))
    bench.engine.accept(translation("b", sample_group="a", max_tokens=8))
    bench.engine.accept(translation("c", (1, 2), max_tokens=2))
    bench.engine.accept(translation("d", (3, 4), max_tokens=2))
    # When all have run / Then none attended to another's encoder KV (the fakes check)
    bench.run()
    assert bench.notes.written == {
        "a": expected(PROMPT, 1),
        "b": expected(PROMPT, 8),
        "c": expected((1, 2), 2),
        "d": expected((3, 4), 2),
    }
    assert bench.engine.scheduler.slots.free_encoder_kv == [0, 1]


def test_a_request_cancelled_during_its_encoder_step_leaves_its_place() -> None:
    # Given a request in an encoder step, and another sample that has a slot already
    bench = Bench(seq2seq_plan(2, num_slots=2))
    bench.engine.accept(translation("a", sample_group="a"))
    bench.engine.accept(translation("b", sample_group="a"))
    bench.engine.cancel("a")
    # When the step is done
    bench.run()
    # Then the other sample uses the encoder KV
    assert bench.notes.written == {"b": expected(PROMPT, 4)}
    assert sum(step.start == 0 for step in bench.shards.sent) == 1
    assert sorted(bench.engine.scheduler.slots.free) == [0, 1]
    assert bench.engine.scheduler.slots.free_encoder_kv == [0, 1]


def test_a_text_that_breaks_the_encoder_ends_alone() -> None:
    # Given a prompt with which the encoder always raises, and another prompt
    bench = Bench(seq2seq_plan(num_slots=2))
    bench.engine.accept(translation("bad", (13, 13)))
    bench.engine.accept(translation("good"))
    # When steps with it fail, and the engine is resumed each time
    for _ in range(50):
        if not bench.engine.in_flight:
            break
        number = min(bench.engine.in_flight)
        rows = bench.engine.in_flight[number].step.rows
        if any(row.tokens == (13, 13) for row in rows):
            bench.engine.fail_step(bench.plan.epoch, number, ShardFailed("it raised"))
            bench.recover()
        else:
            bench.finish_oldest()
    # Then it alone ends with the error
    assert isinstance(bench.notes.ended["bad"], ShardFailed)
    assert bench.notes.written == {"good": expected(PROMPT, 4)}


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    events=st.lists(st.sampled_from(["come", "step", "step", "lose"]), max_size=40),
    stages=st.integers(1, 3),
    budget=st.integers(1, 20),
)
def test_after_any_losses_each_answer_is_that_of_a_run_alone(
    lengths: list[int], events: list[str], stages: int, budget: int
) -> None:
    # Given translations, two of each prompt
    bench = Bench(seq2seq_plan(stages, num_slots=3), max_batch_tokens=budget)
    waiting = [
        translation(
            f"{n}.{sample}", tuple(range(n, n + length)), max_tokens=length, sample_group=str(n)
        )
        for n, length in enumerate(lengths)
        for sample in range(2)
    ]
    # When they come, and shards lose everything, at any time
    bench.live_through(events, waiting)
    # Then
    assert bench.notes.written == {
        f"{n}.{sample}": expected(tuple(range(n, n + length)), length)
        for n, length in enumerate(lengths)
        for sample in range(2)
    }
    assert sorted(bench.engine.scheduler.slots.free_encoder_kv) == [0, 1, 2]
