"""The scheduler: who runs, in which slot, and in which step."""

from __future__ import annotations

from engine_fakes import new_sequence
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.scheduler import Scheduler
from skynet.engine.sequence import Sequence
from skynet.step import Row

Batch = list[tuple[Sequence, Row]]


def finish(batch: Batch) -> None:
    """The step is done: what was computed counts, and each row that wanted a token gets one."""
    for sequence, row in batch:
        sequence.in_flight = False
        sequence.computed = row.stop
        if row.want is not None:
            sequence.append(1)


def filled(num_slots: int, num_batches: int, budget: int, *lengths: int) -> Scheduler:
    scheduler = Scheduler(num_slots, num_batches, budget)
    for number, length in enumerate(lengths):
        scheduler.add(new_sequence(str(number), range(length), max_tokens=100))
    return scheduler


def test_a_long_prompt_comes_in_chunks_and_only_the_last_wants_a_token() -> None:
    # Given a prompt of 10 and steps of 4
    scheduler = filled(1, 1, 4, 10)
    # When it is prefilled
    rows = []
    for _ in range(4):
        batch = scheduler.next_batch()
        rows += [row for _, row in batch]
        finish(batch)
    # Then each token comes once, in order, and then the answer's
    assert [(row.start, row.tokens) for row in rows] == [
        (0, (0, 1, 2, 3)),
        (4, (4, 5, 6, 7)),
        (8, (8, 9)),
        (10, (1,)),
    ]
    assert [row.want is not None for row in rows] == [False, False, True, True]


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


def test_who_is_in_flight_is_in_no_other_batch() -> None:
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


def test_forgotten_slots_are_computed_again_from_the_start() -> None:
    # Given a sequence with some tokens
    scheduler = filled(1, 1, 100, 3)
    finish(scheduler.next_batch())
    finish(scheduler.next_batch())
    # When its slot is lost
    scheduler.forget_computed()
    # Then prompt and answer so far are one prefill
    ((_, row),) = scheduler.next_batch()
    assert (row.start, row.tokens, row.prompt_length) == (0, (0, 1, 2, 1, 1), 3)
    assert row.want is not None


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
        action = data.draw(st.sampled_from(["add", "step", "step", "finish", "leave"]))
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
        # And no slot has two sequences
        slots = [sequence.slot for sequence in scheduler.running]
        assert len(slots) == len(set(slots)) <= num_slots
        assert set(slots) <= set(range(num_slots))
        assert all(sequence.slot is None for sequence in scheduler.waiting)
