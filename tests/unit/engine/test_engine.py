"""The engine: after any events, each request ends once, with the tokens of a run alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from engine_fakes import Bench, answer, new_sequence, tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.sequence import Sequence
from skynet.errors import (
    ClusterUnreachable,
    PeerLost,
    RequestCancelled,
    RequestTimeout,
    ShardFailed,
    ShardLost,
)
from skynet.request.record import Token


def test_requests_of_different_lengths_join_and_leave() -> None:
    # Given an engine that is busy with one request
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1, 2, 3], max_tokens=9))
    bench.finish_oldest()
    # When others join while it runs, one of them short
    bench.engine.accept(new_sequence("b", [7], max_tokens=2))
    bench.finish_oldest()
    bench.engine.accept(new_sequence("c", list(range(20)), max_tokens=5))
    bench.run()
    # Then each answer is that of the request alone, and they shared steps
    assert bench.notes.written == {
        "a": answer([1, 2, 3], 9),
        "b": answer([7], 2),
        "c": answer(list(range(20)), 5),
    }
    assert bench.notes.ended == {"a": "length", "b": "length", "c": "length"}
    assert max(len(step.rows) for step in bench.shards.sent) == 3
    assert bench.engine.num_tokens == 16


@given(
    stages=st.integers(1, 3),
    slots=st.integers(1, 4),
    budget=st.integers(1, 12),
    requests=st.lists(
        st.tuples(st.integers(1, 25), st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=7
    ),
)
def test_any_mix_of_requests_gives_each_the_answer_of_a_run_alone(
    stages: int, slots: int, budget: int, requests: list[tuple[int, int, int]]
) -> None:
    # Given few slots, small steps, and several batches in flight
    bench = Bench(tiny_plan(stages, num_slots=slots), max_batch_tokens=budget)
    # When requests come between steps
    for number, (length, count, steps_before) in enumerate(requests):
        for _ in range(steps_before):
            if bench.engine.in_flight:
                bench.finish_oldest()
        prompt = list(range(number, number + length))
        bench.engine.accept(new_sequence(str(number), prompt, max_tokens=count))
        assert len(bench.engine.in_flight) <= stages
    bench.run()
    # Then nothing is lost, repeated or mixed up, and every slot is free again
    for number, (length, count, _) in enumerate(requests):
        prompt = list(range(number, number + length))
        assert bench.notes.written[str(number)] == answer(prompt, count)
    assert set(bench.notes.ended.values()) == {"length"}
    assert bench.engine.sequences == {}
    assert all(step.num_tokens <= budget for step in bench.shards.sent)


def test_a_request_is_taken_once() -> None:
    # Given a request that runs
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1]))
    # When its message comes again
    bench.engine.accept(new_sequence("a", [1]))
    bench.run()
    # Then it is answered once
    assert bench.notes.written == {"a": answer([1], 4)}


def test_nothing_is_sent_before_the_shards_are_ready() -> None:
    # Given an engine whose shards still load
    bench = Bench()
    bench.engine.ready = False
    bench.engine.accept(new_sequence("a", [1]))
    assert bench.shards.sent == []
    # When they are ready
    bench.engine.ready = True
    bench.engine.pump()
    bench.run()
    # Then the request that waited is answered
    assert bench.notes.written == {"a": answer([1], 4)}


def test_duplicated_and_stale_results_change_nothing() -> None:
    # Given a step that has been finished
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1]))
    number = bench.finish_oldest()
    before = dict(bench.notes.written), bench.engine.num_steps, len(bench.shards.sent)
    flying = next(iter(bench.engine.in_flight))
    epoch, parts = bench.plan.epoch, bench.shards.parts(number)
    # When it comes again, or comes late from another plan, or fails then, or never was
    bench.engine.finish_step(epoch, number, parts)
    bench.engine.finish_step(epoch - 1, flying, bench.shards.parts(flying))
    bench.engine.fail_step(epoch, number, PeerLost("late"))
    bench.engine.fail_step(epoch + 1, flying, PeerLost("of another plan"))
    bench.engine.finish_step(epoch, 10**9, parts)
    # Then nothing changes, and the answer is right
    assert (dict(bench.notes.written), bench.engine.num_steps, len(bench.shards.sent)) == before
    bench.run()
    assert bench.notes.written == {"a": answer([1], 4)}


def test_after_a_failed_step_all_answers_are_those_of_an_undisturbed_run() -> None:
    # Given two batches in flight
    bench = Bench(tiny_plan(stages=2))
    bench.engine.accept(new_sequence("a", [1]))
    bench.engine.accept(new_sequence("b", [2]))
    first, second = sorted(bench.engine.in_flight)
    late = bench.plan.epoch, first, bench.shards.parts(first)
    # When one of them fails
    bench.engine.fail_step(bench.plan.epoch, first, PeerLost("stage0.shard1 was too late"))
    # Then both are given up, nothing is sent, and the carrier is told the cause
    assert bench.shards.given_up == [first, second]
    assert "stage0.shard1" in str(bench.shards.failures[0])
    assert not bench.engine.ready
    sent = len(bench.shards.sent)
    bench.engine.accept(new_sequence("c", [3]))
    assert len(bench.shards.sent) == sent
    # And with a new epoch each is answered as in an undisturbed run
    bench.recover()
    bench.engine.finish_step(*late)
    bench.run()
    assert bench.notes.written == {"a": answer([1], 4), "b": answer([2], 4), "c": answer([3], 4)}


def test_a_request_with_which_shards_raise_is_isolated_and_ends_alone() -> None:
    # Given three requests in one step, of which one makes shards raise
    bench = Bench()
    bench.engine.ready = False
    for name, prompt in (("a", [1]), ("bad", [2]), ("c", [3])):
        bench.engine.accept(new_sequence(name, prompt, max_tokens=8))
    bench.recover()

    # When every step with it fails
    def is_bad(number: int) -> bool:
        batch = bench.engine.in_flight[number].batch
        return any(sequence.id == "bad" for sequence, _ in batch)

    for _ in range(100):
        while bench.engine.in_flight and not is_bad(min(bench.engine.in_flight)):
            bench.finish_oldest()
        if not bench.engine.in_flight:
            break
        number = min(bench.engine.in_flight)
        bench.engine.fail_step(bench.plan.epoch, number, ShardFailed("stage0.shard0 raised"))
        bench.recover()
    # Then it alone ends with the error, and the others have their answers
    assert isinstance(bench.notes.ended["bad"], ShardFailed)
    assert bench.notes.written == {"a": answer([1], 8), "c": answer([3], 8)}


def test_a_request_that_kills_shards_is_isolated_and_ends_alone() -> None:
    # Given three requests in one step, of which one ends the process of a shard
    bench = Bench()
    bench.engine.ready = False
    for name, prompt in (("a", [1]), ("bad", [2]), ("c", [3])):
        bench.engine.accept(new_sequence(name, prompt, max_tokens=8))
    bench.recover()
    # When a shard dies in every step with it
    for _ in range(100):
        while bench.engine.in_flight:
            batch = bench.engine.in_flight[min(bench.engine.in_flight)].batch
            if any(sequence.id == "bad" for sequence, _ in batch):
                break
            bench.finish_oldest()
        if not bench.engine.in_flight:
            break
        bench.engine.suspend()
        bench.engine.blame_loss()
        bench.recover()
    # Then it alone ends with an error, and the others have their answers
    assert isinstance(bench.notes.ended["bad"], ShardLost)
    assert bench.notes.written == {"a": answer([1], 8), "c": answer([3], 8)}


def test_lost_messages_fail_no_request() -> None:
    # Given a request whose steps are lost again and again
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1]))
    for _ in range(20):
        number = min(bench.engine.in_flight)
        bench.engine.fail_step(bench.plan.epoch, number, PeerLost("stage0.shard1 was too late"))
        bench.recover()
    # When it works again / Then it is answered
    bench.run()
    assert bench.notes.written == {"a": answer([1], 4)}


def test_cancel_takes_effect_at_the_next_step() -> None:
    # Given a request in flight and one that waits for the only slot
    bench = Bench(tiny_plan(num_slots=1))
    bench.engine.accept(new_sequence("a", [1], max_tokens=50))
    bench.engine.accept(new_sequence("b", [2]))
    bench.finish_oldest()
    # When both are cancelled
    bench.engine.cancel("a")
    bench.engine.cancel("b")
    bench.engine.cancel("nobody")
    # Then the waiting one ends at once, the running one when its step is done
    assert isinstance(bench.notes.ended["b"], RequestCancelled)
    assert "a" not in bench.notes.ended
    bench.finish_oldest()
    assert isinstance(bench.notes.ended["a"], RequestCancelled)
    assert bench.notes.written == {"a": answer([1], 50)[:2]}
    assert (bench.engine.sequences, bench.engine.in_flight) == ({}, {})


def test_a_cancellation_that_the_journal_reports_takes_effect() -> None:
    # Given two requests, and a cancellation whose message was lost
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1], max_tokens=50))
    bench.engine.accept(new_sequence("b", [2]))
    bench.notes.cancel_asked.add("a")
    # When steps go on
    bench.run()
    # Then the one ends early, the other is answered
    assert isinstance(bench.notes.ended["a"], RequestCancelled)
    assert len(bench.notes.written["a"]) < 4
    assert bench.notes.written["b"] == answer([2], 4)


def test_a_request_that_ends_by_itself_as_it_is_cancelled_is_answered() -> None:
    # Given a request whose last token is in flight
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1], max_tokens=1))
    # When it is cancelled
    bench.engine.cancel("a")
    bench.run()
    # Then it ends once, with its finish reason
    assert bench.notes.ended == {"a": "length"}


def test_a_deadline_ends_waiting_and_running_requests() -> None:
    # Given one slot, a running request and a waiting one
    bench = Bench(tiny_plan(num_slots=1))
    bench.engine.accept(new_sequence("a", [1], deadline=102, max_tokens=50))
    bench.engine.accept(new_sequence("b", [2], deadline=102))
    bench.engine.accept(new_sequence("c", [3]))
    bench.finish_oldest()
    # When their time is over
    bench.now = 102.5
    bench.engine.tick()
    # Then both end and say how far they were; the third gets the slot
    assert isinstance(bench.notes.ended["a"], RequestTimeout)
    assert "running, 1 tokens done" in str(bench.notes.ended["a"])
    assert "waiting, 0 tokens done" in str(bench.notes.ended["b"])
    bench.run()
    assert bench.notes.written["c"] == answer([3], 4)


@pytest.mark.parametrize(("timeout_s", "shown"), [(0.01, "0.01"), (1234567.5, "1234567.5")])
def test_a_timeout_is_shown_as_it_was_given(timeout_s: float, shown: str) -> None:
    # Given a request of today: floats of that size have steps of 0.2 microseconds
    bench = Bench(tiny_plan(num_slots=1))
    sequence = new_sequence("a", [1])
    created = 1_790_000_000.25
    sequence.record = replace(sequence.record, created=created, deadline=created + timeout_s)
    bench.engine.accept(sequence)
    # When its time is over / Then
    bench.now = created + timeout_s + 1
    bench.engine.tick()
    assert f"not answered within its {shown} s" in str(bench.notes.ended["a"])


@pytest.mark.parametrize("late", ["a", "b", "c"])
def test_a_deadline_in_mid_step_does_not_change_other_tokens(late: str) -> None:
    # Given three requests in one step
    bench = Bench()
    bench.engine.ready = False
    prompts = {"a": [1], "b": [2], "c": [3]}
    for name, prompt in prompts.items():
        deadline = 102 if name == late else 1e12
        bench.engine.accept(new_sequence(name, prompt, deadline=deadline))
    bench.engine.ready = True
    bench.engine.pump()
    assert len(bench.shards.sent[0].rows) == 3
    # When the time of one is over before the step is done
    bench.now = 102.5
    bench.engine.tick()
    bench.run()
    # Then the other two are answered
    assert isinstance(bench.notes.ended[late], RequestTimeout)
    assert bench.notes.written == {
        name: answer(prompt, 4) for name, prompt in prompts.items() if name != late
    }


def test_a_cancelled_request_whose_deadline_passes_in_mid_step_ends_once() -> None:
    # Given two requests in one step, one of them cancelled
    bench = Bench()
    bench.engine.ready = False
    bench.engine.accept(new_sequence("a", [1], deadline=102))
    bench.engine.accept(new_sequence("b", [2]))
    bench.engine.ready = True
    bench.engine.pump()
    bench.engine.cancel("a")
    # When its time is over before the step is done
    bench.now = 102.5
    bench.engine.tick()
    bench.run()
    # Then it has ended once, and the other is answered
    assert isinstance(bench.notes.ended["a"], RequestTimeout)
    assert bench.notes.written == {"b": answer([2], 4)}


def test_a_slot_is_free_only_when_the_step_with_it_is_over() -> None:
    # Given one slot, a request in it whose time is over in mid-step, and one that waits
    bench = Bench(tiny_plan(stages=2, num_slots=1))
    bench.engine.accept(new_sequence("a", [1], deadline=102))
    bench.engine.accept(new_sequence("b", [2]))
    bench.now = 102.5
    bench.engine.tick()
    assert isinstance(bench.notes.ended["a"], RequestTimeout)
    # When the step is still in flight / Then no other sequence writes into the slot
    assert len(bench.shards.sent) == 1
    # And afterwards the other has it
    bench.run()
    assert bench.notes.written == {"b": answer([2], 4)}


def test_a_step_that_takes_too_long_is_given_up_and_run_again() -> None:
    # Given a step in flight
    bench = Bench(step_timeout_s=5)
    bench.engine.accept(new_sequence("a", [1]))
    number = min(bench.engine.in_flight)
    # When just before, then after its deadline nothing has come
    bench.now += 4.9
    bench.engine.tick()
    assert bench.shards.failures == []
    bench.now += 0.2
    bench.engine.tick()
    # Then it is lost, and run again under a new epoch
    assert isinstance(bench.shards.failures[0], ShardLost)
    assert f"step {number}" in str(bench.shards.failures[0])
    bench.recover()
    bench.run()
    assert bench.notes.written == {"a": answer([1], 4)}


def test_patience_is_learned_from_steps_and_grows_with_losses() -> None:
    # Given an engine whose steps take no time
    bench = Bench(step_timeout_s=100)
    bench.engine.accept(new_sequence("a", [1], max_tokens=500))
    for _ in range(20):
        bench.finish_oldest()

    # When steps are lost
    def patience() -> float:
        flight = next(iter(bench.engine.in_flight.values()))
        return flight.deadline - flight.sent

    seen = []
    for _ in range(4):
        seen.append(patience())
        bench.now += patience() + 0.1
        bench.engine.tick()
        bench.recover()
    # Then each is waited for longer than the one before, but never past the time-out
    assert seen[0] < 10
    assert all(later > earlier for earlier, later in pairwise(seen))
    assert max(seen) <= 100


def test_lost_shards_are_replayed_in_order_under_another_shape() -> None:
    # Given running requests and one that waits, in mid-answer
    bench = Bench(tiny_plan(num_slots=3))
    for name in "abcd":
        bench.engine.accept(new_sequence(name, [ord(name)], max_tokens=6))
    bench.finish_oldest()
    bench.finish_oldest()
    running = [sequence.id for sequence in bench.engine.scheduler.running]
    known = sum(sequence.mode.num_tokens for sequence in bench.engine.scheduler.running)
    # When the shards are lost, and a plan of another shape follows
    bench.recover(tiny_plan(stages=2, shards=3, num_slots=3))
    # Then the same sequences run, each is replayed once, and every answer is that of a run alone
    assert [sequence.id for sequence in bench.engine.scheduler.running] == running
    bench.run()
    assert bench.notes.written == {name: answer([ord(name)], 6) for name in "abcd"}
    assert bench.shards.replays == [(3, known)]


def test_a_step_boundary_comes_when_all_steps_are_done() -> None:
    # Given two steps in flight
    bench = Bench(tiny_plan(stages=2))
    bench.engine.accept(new_sequence("a", [1]))
    bench.engine.accept(new_sequence("b", [2]))
    # When a boundary is asked for
    assert not bench.engine.drain()
    bench.finish_oldest()
    assert not bench.engine.drain()
    bench.finish_oldest()
    # Then it is there, and nothing was given up; without need, all goes on
    assert bench.engine.drain()
    assert bench.shards.given_up == []
    bench.engine.go_on()
    bench.run()
    assert bench.notes.written == {"a": answer([1], 4), "b": answer([2], 4)}


def test_a_step_that_cannot_be_sent_is_sent_under_the_next_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a carrier that has lost Redis
    bench = Bench()

    def refuse(step: object) -> None:
        raise ClusterUnreachable("no answer")

    with monkeypatch.context() as broken:
        broken.setattr(bench.shards, "send", refuse)
        # When a request is accepted
        bench.engine.accept(new_sequence("a", [1, 2, 3], max_tokens=4))
    # Then the request does not fail, the cause is reported, and it goes on with the next plan
    assert bench.notes.ended == {}
    assert bench.engine.in_flight == {}
    assert isinstance(bench.shards.failures[0], ClusterUnreachable)
    bench.recover()
    bench.run()
    assert bench.notes.written["a"] == answer([1, 2, 3], 4)


def test_a_token_that_was_not_written_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a journal that loses one token of two
    bench = Bench()
    bench.engine.accept(new_sequence("a", [1, 2, 3], max_tokens=4))
    bench.engine.accept(new_sequence("b", [4], max_tokens=4))
    bench.finish_oldest()
    bench.finish_oldest()
    written = list(bench.notes.written["a"])
    write = bench.notes.tokens

    def lose(tokens: list[tuple[Sequence, Token]]) -> tuple[set[str], set[str]]:
        write([(sequence, token) for sequence, token in tokens if sequence.id != "a"])
        return set(), {"a"}

    with monkeypatch.context() as broken:
        broken.setattr(bench.notes, "tokens", lose)
        bench.finish_oldest()
    # When the request is restored from the written tokens
    assert "a" not in bench.engine.sequences
    again = new_sequence("a", [1, 2, 3], max_tokens=4)
    again.output.restore(written)
    bench.notes.running.discard("a")  # it starts a second time
    bench.engine.accept(again)
    # Then nothing is missing, and nothing is there twice
    while bench.notes.ended.get("a") is None:
        bench.finish_oldest()
    assert bench.notes.written["a"] == answer([1, 2, 3], 4)
