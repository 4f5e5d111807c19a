"""The scheduler: which sequences run, in which slot and in which step."""

from __future__ import annotations

import numpy as np
from engine_fakes import TINY, new_sequence
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.modes.mode import RowResult
from skynet.engine.output import ModelInfo
from skynet.engine.scheduler import Scheduler
from skynet.engine.sequence import Sequence
from skynet.request.record import Options, Record
from skynet.tokenizer.text import Text
from skynet.wire.step import Candidates, Row

Batch = list[tuple[Sequence, Row]]
TOKEN_1 = Candidates(np.array([1], np.int32), np.array([1.0], np.float32), 1.0, 1.0)


def finish(batch: Batch) -> None:
    """Finish the step; each row with a logits request gets token 1."""
    for sequence, row in batch:
        sequence.in_flight = False
        sequence.take([RowResult(row, [TOKEN_1])])


def filled(num_slots: int, num_batches: int, budget: int, *lengths: int) -> Scheduler:
    scheduler = Scheduler(num_slots, num_batches, budget)
    for number, length in enumerate(lengths):
        scheduler.add(new_sequence(str(number), range(length), max_tokens=100))
    return scheduler


def test_a_long_prompt_comes_in_chunks_and_only_the_last_requests_logits() -> None:
    # Given a prompt of 10 and steps of 4
    scheduler = filled(1, 1, 4, 10)
    # When it is prefilled
    rows = []
    for _ in range(4):
        batch = scheduler.next_batch()
        rows += [row for _, row in batch]
        finish(batch)
    # Then each token is computed once, in order, and then the answer's
    assert [(row.start, row.tokens) for row in rows] == [
        (0, (0, 1, 2, 3)),
        (4, (4, 5, 6, 7)),
        (8, (8, 9)),
        (10, (1,)),
    ]
    assert [row.logits_request is not None for row in rows] == [False, False, True, True]


def test_decodes_go_before_prompts() -> None:
    # Given a long prompt that came first and a short one that is decoding already
    scheduler = filled(2, 1, 4, 50)
    finish(scheduler.next_batch())
    scheduler.add(new_sequence("short", [7], max_tokens=100))
    finish(scheduler.next_batch())
    finish(scheduler.next_batch())
    # When the next step is made
    batch = {sequence.id: row for sequence, row in scheduler.next_batch()}
    # Then the decode is in it, and the prompt has the rest of the room
    assert len(batch["short"].tokens) == 1
    assert len(batch["0"].tokens) == 3


def test_a_sequence_in_flight_is_in_no_other_batch() -> None:
    # Given 4 sequences and 2 batches in flight
    scheduler = filled(4, 2, 100, 3, 3, 3, 3)
    # When batches are made while none is done
    first, second, third = (scheduler.next_batch() for _ in range(3))
    # Then each has its share
    assert [len(first), len(second), len(third)] == [2, 2, 0]
    assert {s.id for s, _ in first}.isdisjoint({s.id for s, _ in second})


def test_slots_are_given_first_come_first_served() -> None:
    # Given more sequences than slots
    scheduler = filled(2, 1, 100, 1, 1, 1, 1)
    batch = scheduler.next_batch()
    assert [sequence.id for sequence, _ in batch] == ["0", "1"]
    finish(batch)
    # When one leaves, and one that waits gives up
    scheduler.remove(batch[1][0])
    scheduler.remove(scheduler.waiting[0])
    # Then the next in line has its slot
    following = scheduler.next_batch()
    assert [(sequence.id, row.slot) for sequence, row in following] == [("0", 0), ("3", 1)]
    assert list(scheduler) == [sequence for sequence, _ in following]


def asked(name: str, priority: int, arrival: int, *, state: str = "waiting") -> Sequence:
    """A sequence of a record with these fields."""
    record = Record(
        name, (1, 2), Options(), 0.0, 1e12, state=state, arrival=arrival, priority=priority
    )
    return Sequence.of(record, ModelInfo(TINY, Text({}), frozenset(), 512))


def test_waiting_sequences_are_ordered_by_priority_then_arrival() -> None:
    # Given a sequence that runs, and others that come in another order than their records did
    scheduler = filled(1, 1, 100, 3)
    running = scheduler.next_batch()
    for name, priority, arrival in (
        ("c", 0, 3),
        ("a", 0, 1),
        ("d", 9, 4),
        ("b", 5, 2),
        ("e", 9, 5),
    ):
        scheduler.add(asked(name, priority, arrival))
    # Then the running one is not interrupted, and the others wait in line
    assert [sequence.id for sequence in scheduler] == ["0", "d", "e", "b", "a", "c"]
    finish(running)
    assert [sequence.id for sequence, _ in scheduler.next_batch()] == ["0"]


def test_a_sequence_that_ran_under_another_orchestrator_goes_before_waiting_ones() -> None:
    # Given one that waits with the highest priority
    scheduler = Scheduler(1, 1, 100)
    scheduler.add(asked("urgent", 9, 1))
    # When one is taken up again that was running
    scheduler.add(asked("replayed", 0, 2, state="running"))
    # Then that has the slot
    assert [sequence.id for sequence, _ in scheduler.next_batch()] == ["replayed"]


def test_after_a_reset_all_is_computed_again_from_the_start() -> None:
    # Given a sequence with some tokens, in flight
    scheduler = filled(1, 1, 100, 3)
    finish(scheduler.next_batch())
    finish(scheduler.next_batch())
    assert scheduler.next_batch()
    assert scheduler.next_batch() == []
    # When its slot is lost
    scheduler.reset(1)
    # Then prompt and answer so far are one prefill
    ((_, row),) = scheduler.next_batch()
    assert (row.start, row.tokens, row.prompt_length) == (0, (0, 1, 2, 1, 1), 3)
    assert row.logits_request is not None


def test_a_reset_keeps_the_order_and_gives_slots_anew() -> None:
    # Given three that run, the first of which ends, and two that wait, one of them urgent
    scheduler = filled(3, 1, 100, 2, 2, 2)
    finish(scheduler.next_batch())
    scheduler.remove(scheduler.running[0])
    scheduler.add(asked("later", 0, 7))
    finish(scheduler.next_batch())
    for name, priority in (("calm", 0), ("urgent", 9)):
        scheduler.add(asked(name, priority, 8))
    assert [s.slot for s in scheduler.running] == [1, 2, 0]
    # When all slots are lost
    scheduler.reset(2)
    # Then running sequences have slots again, in order, and waiting ones wait
    assert [(s.id, s.slot, s.mode.computed) for s in scheduler] == [
        ("1", 0, 0),
        ("2", 1, 0),
        ("later", 2, 0),
        ("urgent", None, 0),
        ("calm", None, 0),
    ]
    # And batches are shared out for the new number of stages
    assert [len(scheduler.next_batch()) for _ in range(3)] == [2, 1, 0]


def test_a_reset_to_fewer_slots_lets_the_rest_wait_in_front() -> None:
    # Given three that run and one that waits
    scheduler = filled(3, 1, 100, 2, 2, 2, 2)
    scheduler.next_batch()
    # When there is one slot only, and an urgent one comes
    scheduler.reset(1, num_slots=1)
    scheduler.add(asked("urgent", 9, 1))
    # Then
    assert [s.id for s in scheduler.running] == ["0"]
    assert [s.id for s in scheduler.waiting] == ["1", "2", "urgent", "3"]


def test_a_suspect_is_batched_alone_and_delays_no_other() -> None:
    # Given four that run, two of them suspect
    scheduler = filled(4, 1, 100, 2, 2, 2, 2)
    finish(scheduler.next_batch())
    suspects = {"1", "3"}
    for sequence in scheduler:
        sequence.suspect = sequence.id in suspects
    # When batches are made
    batches = []
    for _ in range(8):
        batch = scheduler.next_batch()
        batches.append({sequence.id for sequence, _ in batch})
        finish(batch)
    # Then a suspect is always alone, and all take turns
    assert batches == [{"1"}, {"0", "2"}, {"3"}, {"0", "2"}] * 2


def test_suspects_alone_leave_no_batch_empty() -> None:
    # Given two sequences, both suspect, and two batches in flight
    scheduler = filled(2, 2, 100, 2, 2)
    scheduler.reset(2)
    for sequence in (*scheduler.running, *scheduler.waiting):
        sequence.suspect = True
    # Then each has a batch alone, and there is no third
    assert [[s.id for s, _ in scheduler.next_batch()] for _ in range(3)] == [["0"], ["1"], []]


@given(data=st.data())
def test_no_slot_twice_and_every_token_once(data: st.DataObject) -> None:
    # Given any number of slots and batches
    num_slots, num_batches = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    budget = data.draw(st.integers(1, 9))
    scheduler = Scheduler(num_slots, num_batches, budget)
    computed: dict[str, int] = {}
    flying: list[Batch] = []
    # When sequences join and leave in any order
    for number in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "step", "step", "finish", "leave", "reset"]))
        if action == "add":
            prompt = range(data.draw(st.integers(1, 20)))
            scheduler.add(new_sequence(str(number), prompt, max_tokens=100))
        elif action == "step" and len(flying) < num_batches:
            flying.append(scheduler.next_batch())
            # Then a batch has room for it, and one begins where the last ended
            assert sum(len(row.tokens) for _, row in flying[-1]) <= budget
            for sequence, row in flying[-1]:
                assert row.tokens
                assert row.start == computed.get(sequence.id, 0)
                computed[sequence.id] = row.stop
        elif action == "finish" and flying:
            finish(flying.pop(0))
        elif action == "leave":
            idle = [sequence for sequence in scheduler if not sequence.in_flight]
            if idle:
                scheduler.remove(data.draw(st.sampled_from(idle)))
        elif action == "reset":
            before = [sequence.id for sequence in scheduler]
            scheduler.reset(num_batches)
            flying, computed = [], {}
            assert [sequence.id for sequence in scheduler] == before
        # And no slot has two sequences
        slots = [sequence.slot for sequence in scheduler.running]
        assert len(slots) == len(set(slots)) <= num_slots
        assert set(slots) <= set(range(num_slots))
        assert all(sequence.slot is None for sequence in scheduler.waiting)
