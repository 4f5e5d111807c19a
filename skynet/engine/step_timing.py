"""Expected and measured times of steps: layers per chord, and the deadline of a step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from skynet.engine.span import SpanChooser
from skynet.planning.plan import Plan
from skynet.wire.step import Part, Step

logger = logging.getLogger(__name__)

# A step is lost after MIN_PATIENCE_S and PATIENCE times its expected time.
PATIENCE, MIN_PATIENCE_S, FIRST_PATIENCE_S = 20, 3.0, 30.0


class StepTotals(NamedTuple):
    """All finished steps: their number, seconds from sending to results, and chords.

    busy_s: of these seconds, compute and exchange of the slowest shards.
    """

    steps: int = 0
    seconds: float = 0.0
    busy_s: float = 0.0
    chords: int = 0

    def with_step(self, seconds: float, busy_s: float, chords: int) -> StepTotals:
        steps, all_s, all_busy_s, all_chords = self
        return StepTotals(steps + 1, all_s + seconds, all_busy_s + busy_s, all_chords + chords)

    def since(self, before: StepTotals) -> StepTotals:
        """The steps after `before`; all if that was of another engine."""
        if self.steps < before.steps:
            return self
        return StepTotals(
            self.steps - before.steps,
            self.seconds - before.seconds,
            self.busy_s - before.busy_s,
            self.chords - before.chords,
        )

    @property
    def chord_s(self) -> float:
        """Mean cost of a chord."""
        return max(0.0, self.seconds - self.busy_s) / self.chords if self.chords else 0.0


class StepTiming:
    """Learns from finished steps how long the next one takes.

    timeout_s: upper limit of a step's patience.
    chord_share: see `SpanChooser`.
    lost_in_a_row: consecutive steps that passed their deadline.
    totals: of the finished steps under all plans.
    """

    def __init__(self, plan: Plan, timeout_s: float, chord_share: float) -> None:
        self.plan = plan
        self.timeout_s = timeout_s
        self.chord_share = chord_share
        self.spans = SpanChooser(plan, chord_share)
        self.lost_in_a_row = 0
        self.totals = StepTotals()

    def follow(self, plan: Plan) -> None:
        """Continue with another plan; what was learned stays a first guess."""
        if (plan.stages, plan.chord_span) != (self.plan.stages, self.plan.chord_span):
            self.spans = SpanChooser(plan, self.chord_share, self.spans)
        self.plan = plan

    def patience_s(self, step: Step) -> float:
        """How long to wait for a step: doubled by each consecutive loss, up to the time-out."""
        num_layers = self.plan.num_layers - step.start
        expected_s = self.spans.expected_s(step.num_tokens, self._num_chords(step), num_layers)
        patience_s = FIRST_PATIENCE_S
        if expected_s is not None:
            patience_s = MIN_PATIENCE_S + PATIENCE * expected_s * len(self.plan.stages)
        return min(self.timeout_s, patience_s * 2**self.lost_in_a_row)

    def learn(self, step: Step, parts: Sequence[Part], spent_s: float, wall_s: float) -> None:
        """Take note of a finished step.

        spent_s: compute of all spans but the last one, whose `parts` these are.
        wall_s: from sending to the end.
        """
        self.lost_in_a_row = 0
        busy_s = spent_s + max(part.busy_s for part in parts)
        num_layers = self.plan.num_layers - step.start
        num_chords = self._num_chords(step)
        self.spans.learn(step.num_tokens, num_chords, busy_s, wall_s, num_layers)
        self.totals = self.totals.with_step(wall_s, busy_s, num_chords)
        logger.debug(
            "step %d done in %.2f ms; last span: %s",
            step.number,
            wall_s * 1000,
            ", ".join(
                f"compute {part.compute_s * 1000:.2f} + wait {part.wait_s * 1000:.2f} ms"
                for part in parts
            ),
        )

    def _num_chords(self, step: Step) -> int:
        return self.plan.chords_of(step.start, step.layers_per_chord)
