"""Steps in which shards find NaN: the guilty request ends, the others keep their slots."""

from __future__ import annotations

import pytest
from engine_fakes import Bench, answer, few_logits, new_sequence, seq2seq_plan, tiny_plan

from skynet.errors import NotFinite
from skynet.planning.plan import Plan
from skynet.wire.step import Step

BAD = 13


def bad_rows(step: Step) -> tuple[int, ...]:
    return tuple(number for number, row in enumerate(step.rows) if BAD in row.tokens)


def live(bench: Bench, names_rows: bool = True) -> int:
    """Run to the end; a step with the bad token fails. Returns how many did."""
    failed = 0
    for _ in range(1000):
        if not bench.engine.in_flight:
            return failed
        number = min(bench.engine.in_flight)
        rows = bad_rows(bench.engine.in_flight[number].step)
        if rows:
            failed += 1
            error = NotFinite("stage0.shard1: NaN", rows if names_rows else ())
            bench.engine.fail_step(bench.plan.epoch, number, error)
        else:
            bench.finish_oldest()
    raise AssertionError("the engine does not finish")


def accept_three(bench: Bench, **options: int) -> None:
    """Two healthy requests and a bad one that share steps."""
    bench.engine.suspend()
    for name, prompt in (("a", [1, 2]), ("bad", [3, BAD]), ("c", [4])):
        bench.engine.accept(new_sequence(name, prompt, **options))
    bench.recover()


@pytest.mark.parametrize("names_rows", [True, False])
@pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan(stages=3)], ids=["1", "3"])
def test_the_guilty_request_ends_after_one_confirmation(plan: Plan, names_rows: bool) -> None:
    # Given requests in one step, one of them with a token that no shard can compute
    bench = Bench(plan)
    accept_three(bench, max_tokens=8)
    failures = len(bench.shards.failures)
    # When
    failed = live(bench, names_rows)
    # Then it ends with the error, found again in a step of its own with chords of one layer
    assert isinstance(bench.notes.ended["bad"], NotFinite)
    assert failed == 2
    confirmation = [step for step in bench.shards.sent if bad_rows(step)][-1]
    assert (len(confirmation.rows), confirmation.layers_per_chord) == (1, 1)
    # And the others have their answers, without another plan
    assert bench.notes.written == {"a": answer([1, 2], 8), "c": answer([4], 8)}
    assert len(bench.shards.failures) == failures
    assert sorted(bench.engine.scheduler.slots.free) == list(range(plan.num_slots))


def test_healthy_requests_are_not_computed_alone() -> None:
    # Given
    bench = Bench()
    accept_three(bench)
    # When / Then only the guilty one is suspected
    live(bench)
    alone = [step for step in bench.shards.sent if step.layers_per_chord == 1]
    assert [step.rows[0].tokens for step in alone] == [(3, BAD)]


def test_numbers_that_are_found_once_only_end_no_request() -> None:
    # Given a request whose step fails, and is right when it is repeated
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1], max_tokens=6))
    for _ in range(2):
        number = min(bench.engine.in_flight)
        bench.engine.fail_step(bench.plan.epoch, number, NotFinite("a bit was flipped", (0,)))
        bench.finish_oldest()
    # When / Then
    bench.run()
    assert bench.notes.written == {"a": answer([1], 6)}


def test_a_request_that_was_cancelled_during_the_step_ends_once() -> None:
    # Given
    bench = Bench(tiny_plan(num_slots=2))
    bench.engine.accept(new_sequence("bad", [BAD]))
    bench.engine.accept(new_sequence("late", [BAD, 1], deadline=50.0))
    bench.engine.cancel("bad")
    bench.engine.tick()
    # When
    live(bench)
    # Then both have ended, and their slots are free
    assert set(bench.notes.ended) == {"bad", "late"}
    assert sorted(bench.engine.scheduler.slots.free) == [0, 1]


def test_a_text_that_no_encoder_can_compute_ends_with_all_its_samples() -> None:
    # Given two samples of a bad text, and another text
    bench = Bench(seq2seq_plan(num_slots=3))
    for name, prompt, group in (("a", (5, BAD), "x"), ("b", (5, BAD), "x"), ("c", (5, 6, 7), "")):
        bench.engine.accept(
            new_sequence(name, prompt, sample_group=group, decoder_start_token_id=2)
        )
    # When
    live(bench)
    # Then
    assert isinstance(bench.notes.ended["a"], NotFinite)
    assert isinstance(bench.notes.ended["b"], NotFinite)
    assert bench.notes.ended["c"] == "length"
    assert sorted(bench.engine.scheduler.slots.free_encoder_kv) == [0, 1, 2]


def test_a_beam_search_goes_on_after_a_step_was_repeated() -> None:
    # Given a search, and a bad request that joins its steps
    alone, bench = Bench(), Bench()
    for one in (alone, bench):
        one.engine.accept(new_sequence("beams", [1, 2], num_beams=3, max_tokens=9))
        one.finish_oldest()
    bench.engine.accept(new_sequence("bad", [500, BAD]))
    # When (the bad token is one that no beam has)
    assert few_logits([1, 2]).argmax() != BAD
    alone.run()
    while bench.engine.in_flight:
        number = min(bench.engine.in_flight)
        batch = bench.engine.in_flight[number].batch
        rows = tuple(at for at, (sequence, _) in enumerate(batch) if sequence.id == "bad")
        if rows:
            bench.engine.fail_step(bench.plan.epoch, number, NotFinite("NaN", rows))
        else:
            bench.finish_oldest()
    # Then
    assert bench.notes.beams == alone.notes.beams
    assert isinstance(bench.notes.ended["bad"], NotFinite)
