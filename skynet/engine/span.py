"""Layers per chord: fixed, or chosen by the measured cost of chords and layers.

A chord has a fixed cost (a message, a wake-up, a script per shard), a layer costs by its tokens.
With `auto` the span is the shortest whose chords cost at most `chord_share` of the step: short
spans show more in Flower and reach the next stage sooner, long ones are faster.
"""

from __future__ import annotations

from skynet.planning.plan import Plan
from skynet.planning.spans import layers_per_chord

SMOOTHING = 0.2
FIRST_CHORD_S = 0.002
FIRST_LAYER_S = 0.001


class SpanChooser:
    """Chooses `layers_per_chord` for a step, and learns from finished steps."""

    def __init__(self, plan: Plan, chord_share: float, before: SpanChooser | None = None) -> None:
        """`before`: of another plan, whose measurements are the first guess."""
        self.mode = plan.chord_span
        self.num_layers = plan.num_layers
        self.longest = max(stage.layers.size for stage in plan.stages)
        self.chord_share = chord_share
        self.chord_s: float = before.chord_s if before else FIRST_CHORD_S
        # Seconds per layer by the power of two of the step's tokens.
        self._layer_s: dict[int, float] = dict(before._layer_s) if before else {}

    def layer_s(self, num_tokens: int) -> float:
        """Expected compute of one layer, by the nearest measured size."""
        if not self._layer_s:
            return FIRST_LAYER_S
        size = _size_class(num_tokens)
        nearest = min(self._layer_s, key=lambda measured: abs(measured - size))
        return self._layer_s[nearest]

    def expected_s(
        self, num_tokens: int, num_chords: int, num_layers: int | None = None
    ) -> float | None:
        """Expected time of a step of `num_layers`, all by default; None before the first step."""
        if not self._layer_s:
            return None
        # Beyond the measured sizes: in proportion to the tokens, as if compute-bound.
        nearest = min(self._layer_s, key=lambda measured: abs(measured - _size_class(num_tokens)))
        scale = max(1.0, 2.0 ** (_size_class(num_tokens) - nearest))
        layers = num_layers or self.num_layers
        return layers * scale * self._layer_s[nearest] + num_chords * self.chord_s

    def layers_per_chord(self, num_tokens: int) -> int:
        """Layers that a chord of this step covers; a span ends at its stage's end."""
        if self.mode == "layer":
            return 1
        if self.mode == "stage":
            return self.longest
        return layers_per_chord(
            self.longest, self.chord_s, self.layer_s(num_tokens), self.chord_share
        )

    def learn(
        self,
        num_tokens: int,
        num_chords: int,
        busy_s: float,
        wall_s: float,
        num_layers: int | None = None,
    ) -> None:
        """Learn from a finished step.

        busy_s: compute of its spans and exchange between peers; the rest of `wall_s` is chords.
        num_layers: of the step, all by default.
        """
        size, layers = _size_class(num_tokens), num_layers or self.num_layers
        self._layer_s[size] = _blend(self._layer_s.get(size), busy_s / layers)
        chord = (wall_s - busy_s) / max(1, num_chords)
        self.chord_s = _blend(self.chord_s, min(max(chord, 1e-4), 0.05))


def _size_class(num_tokens: int) -> int:
    return max(1, num_tokens).bit_length()


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
