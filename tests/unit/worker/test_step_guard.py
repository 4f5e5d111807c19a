"""A span runs once, in order, over slots that the worker has filled itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from celery.exceptions import Ignore
from hypothesis import given
from hypothesis import strategies as st

from skynet.errors import ShardUnready
from skynet.wire.step import Row, Step
from skynet.worker.step_guard import REMEMBERED_STEPS, StepGuard

FIRST = 2  # the stage's first layer
SPANS = ((2, 4), (4, 5), (5, 7))


def step_of(number: int, *rows: tuple[int, int, int] | tuple[int, int, int, int | None]) -> Step:
    """rows: slot, first token's position, tokens, and perhaps a slot to copy from."""
    made = []
    for slot, start, count, *source in rows:
        made.append(Row(slot, start, (7,) * count, 1, None, *source))  # type: ignore[arg-type]
    return Step(1, number, tuple(made), 2)


def offer(guard: StepGuard, step: Step, start: int, stop: int) -> None:
    """What the worker does with a span message."""
    guard.check(step.number, start)
    guard.admit(step, start)
    guard.done(step.number, stop)


class Slots:
    """What really lies in the slots of a worker that runs what its guard lets run."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}  # slot -> tokens whose keys are right
        self.writer: dict[int, int] = {}  # slot -> the last step that wrote into it
        self.ran: list[tuple[int, int]] = []
        self.reached: dict[int, int] = {}

    def run(self, step: Step, start: int, stop: int) -> None:
        if (step.number, start) in self.ran:
            raise AssertionError(f"step {step.number}: layer {start} ran twice")
        self.ran.append((step.number, start))
        if self.reached.get(step.number, FIRST) != start:
            raise AssertionError(f"step {step.number}: layer {start} ran out of order")
        self.reached[step.number] = stop
        for row in step.rows:
            if self.writer.get(row.slot, -1) > step.number:
                raise AssertionError(f"step {step.number} ran over a later one in {row.slot}")
            if start == FIRST and row.source is not None:
                if self.writer.get(row.source, -1) > step.number:
                    raise AssertionError(f"step {step.number} copies a later one's {row.source}")
                if row.start > self.tokens.get(row.source, 0):
                    raise AssertionError(f"step {step.number} copies more than {row.source} has")
        for row in step.rows:
            if start == FIRST:
                if row.source is None and row.start > self.tokens.get(row.slot, 0):
                    raise AssertionError(f"step {step.number} leaves a gap in slot {row.slot}")
                self.tokens[row.slot] = row.stop
                self.writer[row.slot] = step.number
            elif self.writer.get(row.slot) != step.number:
                raise AssertionError(f"step {step.number} goes on in another's slot {row.slot}")


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Steps as an engine sends them: each row goes on where its slot is, or begins anew or as
    a copy of another."""
    known: dict[int, int] = {}
    steps = []
    for number in range(draw(st.integers(1, 6))):
        slots = draw(st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True))
        rows = []
        for slot in slots:
            start = draw(st.sampled_from([0, known.get(slot, 0)]))
            source = draw(st.sampled_from([None, *(known.keys() - set(slots))]))
            if source is not None:
                start = draw(st.integers(1, known[source]))
            count = draw(st.integers(1, 3))
            rows.append((slot, start, count, source))
        known |= {slot: start + count for slot, start, count, _ in rows}
        steps.append(step_of(number, *rows))
    return steps


@given(steps=histories(), data=st.data())
def test_spans_in_any_order_never_compute_on_wrong_slots(
    steps: Sequence[Step], data: st.DataObject
) -> None:
    # Given span messages of some steps: each any number of times, in any order, or never
    messages = [(step, span) for step in steps for span in SPANS]
    count = data.draw(st.integers(0, 3 * len(messages)))
    guard, slots = StepGuard("stage1.shard0", FIRST), Slots()
    for _ in range(count):
        step, (start, stop) = data.draw(st.sampled_from(messages))
        # When each is offered
        try:
            offer(guard, step, start, stop)
        except (Ignore, ShardUnready):
            continue
        # Then each span that runs fits the spans before it (Slots raises if not)
        slots.run(step, start, stop)
    assert len(slots.ran) <= len(messages)


@given(steps=histories())
def test_spans_in_order_all_run(steps: Sequence[Step]) -> None:
    # Given all messages once, in order
    guard, slots = StepGuard("stage1.shard0", FIRST), Slots()
    for step in steps:
        for start, stop in SPANS:
            # When they are offered / Then none is refused
            offer(guard, step, start, stop)
            slots.run(step, start, stop)
    assert len(slots.ran) == len(steps) * len(SPANS)


def test_a_duplicate_is_dropped() -> None:
    # Given a span that has run
    guard, step = StepGuard("stage1.shard0", FIRST), step_of(0, (0, 0, 3))
    offer(guard, step, 2, 4)
    # When it comes again / Then it is dropped without a failure
    with pytest.raises(Ignore, match="step 0: layer 2 came twice"):
        offer(guard, step, 2, 4)


def test_a_span_whose_predecessor_is_missing_fails_the_step() -> None:
    # Given a worker that has not seen the step's first span
    guard = StepGuard("stage1.shard0", FIRST)
    # When a later one comes / Then the error names the missing layers
    with pytest.raises(ShardUnready, match=r"stage1\.shard0 has not computed the layers before 4"):
        offer(guard, step_of(0, (0, 0, 3)), 4, 5)


def test_a_gap_in_a_slot_fails_the_step() -> None:
    # Given a slot with three tokens
    guard = StepGuard("stage1.shard0", FIRST)
    offer(guard, step_of(0, (5, 0, 3)), 2, 7)
    # When a step goes on after the fourth / Then it is refused with the numbers
    with pytest.raises(ShardUnready, match="3 tokens in slot 5, step 2 continues at 4"):
        offer(guard, step_of(2, (5, 4, 1)), 2, 7)


def test_a_late_step_does_not_write_over_a_later_one() -> None:
    # Given a slot that a later step has begun anew
    guard = StepGuard("stage1.shard0", FIRST)
    early = step_of(0, (0, 0, 3))
    offer(guard, early, 2, 4)
    offer(guard, step_of(1, (0, 0, 2)), 2, 4)
    # When the earlier goes on / Then it is dropped
    with pytest.raises(Ignore, match="step 0: step 1 has written to slot 0"):
        offer(guard, early, 4, 5)


def test_only_the_latest_steps_are_remembered() -> None:
    # Given more steps than are kept
    guard = StepGuard("stage1.shard0", FIRST)
    for number in range(REMEMBERED_STEPS + 5):
        step = step_of(number, (0, 0, 1))
        guard.remember(step, b"rows")
    # Then the oldest are forgotten
    assert list(guard.steps) == list(range(5, REMEMBERED_STEPS + 5))


def test_a_slot_can_begin_as_a_copy_of_another() -> None:
    # Given a slot with three tokens
    guard = StepGuard("stage1.shard0", FIRST)
    offer(guard, step_of(0, (5, 0, 3)), 2, 7)
    # When another takes two of them / Then it goes on from there
    offer(guard, step_of(1, (0, 2, 1, 5)), 2, 7)
    offer(guard, step_of(2, (0, 3, 1)), 2, 7)
    with pytest.raises(ShardUnready, match="4 tokens in slot 0, step 3 continues at 5"):
        offer(guard, step_of(3, (0, 5, 1)), 2, 7)


def test_a_copy_of_a_slot_without_the_tokens_fails_the_step() -> None:
    # Given a slot with three tokens / When four are copied / Then the step fails with the numbers
    guard = StepGuard("stage1.shard0", FIRST)
    offer(guard, step_of(0, (5, 0, 3)), 2, 7)
    with pytest.raises(ShardUnready, match="has 3 tokens in slot 5, step 1 reads 4"):
        offer(guard, step_of(1, (0, 4, 1, 5)), 2, 7)
    with pytest.raises(ShardUnready, match="has 0 tokens in slot 4, step 1 reads 1"):
        offer(guard, step_of(1, (0, 1, 1, 4)), 2, 7)


def test_a_late_copy_does_not_take_tokens_of_a_later_step() -> None:
    # Given a slot that a later step has begun anew
    guard = StepGuard("stage1.shard0", FIRST)
    offer(guard, step_of(0, (5, 0, 3)), 2, 7)
    offer(guard, step_of(2, (5, 0, 3)), 2, 7)
    # When an earlier step copies from it / Then it is dropped
    with pytest.raises(Ignore, match="step 1: step 2 has written to its source slot 5"):
        offer(guard, step_of(1, (0, 2, 1, 5)), 2, 7)


def test_encoder_kv_is_separate_from_the_slots() -> None:
    # Given a stage with the last encoder layer and decoder layers, and a text for the encoder
    guard = StepGuard("stage1.shard0", FIRST, encoder_layers=3)
    text = Step(1, 0, (Row(4, 0, (7, 7, 7), 3),), 2)
    token = Step(1, 1, (Row(4, 0, (7,), 1, encoder_kv=(4, 3)),), 2, start=3)
    # When it was not encoded to the end here / Then no token may attend to it
    with pytest.raises(ShardUnready, match="has 0 tokens in encoder KV 4, step 1 reads 3"):
        offer(guard, token, 3, 5)
    offer(guard, text, 2, 3)
    offer(guard, text, 3, 5)
    # And a step of tokens begins within the stage, in a slot of the same number
    offer(guard, token, 3, 5)
    offer(guard, Step(1, 2, (Row(4, 1, (7,), 1, encoder_kv=(4, 3)),), 2, start=3), 3, 5)
    with pytest.raises(ShardUnready, match="has 3 tokens in encoder KV 4, step 3 reads 4"):
        offer(guard, Step(1, 3, (Row(4, 2, (7,), 1, encoder_kv=(4, 4)),), 2, start=3), 3, 5)


def test_a_late_step_does_not_use_the_encoder_kv_of_another_text() -> None:
    # Given a place that a later step has read another text for
    guard = StepGuard("stage0.shard0", 0, encoder_layers=3)
    offer(guard, Step(1, 0, (Row(0, 0, (7, 7), 2),), 9), 0, 5)
    offer(guard, Step(1, 2, (Row(0, 0, (8, 8), 2),), 9), 0, 5)
    # When a step from before comes / Then it is dropped
    with pytest.raises(Ignore, match="step 1: step 2 has written to its source encoder KV 0"):
        offer(guard, Step(1, 1, (Row(0, 0, (7,), 1, encoder_kv=(0, 2)),), 9, start=3), 3, 5)
