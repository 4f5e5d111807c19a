"""Layers per chord: fixed, or so that chords cost at most their share."""

from __future__ import annotations

import math

import pytest
from engine_fakes import tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.span import SpanChooser


def chooser(mode: str, stages: int = 1, share: float = 0.1) -> SpanChooser:
    return SpanChooser(tiny_plan(stages, chord_span=mode), share)


def learned(share: float, chord_s: float, layer_s: float) -> SpanChooser:
    """A chooser after many steps of 6 layers and 1 chord with these costs."""
    spans = chooser("auto", share=share)
    for _ in range(60):
        spans.learn(1, 1, 6 * layer_s, 6 * layer_s + chord_s)
    return spans


def test_layer_and_stage_are_fixed() -> None:
    # Given 6 layers, in 1 stage and in 4 / Then layer is one, stage the longest stage
    assert chooser("layer").layers_per_chord(1) == 1
    assert chooser("stage").layers_per_chord(1) == 6
    longest = max(stage.layers.size for stage in tiny_plan(4).stages)
    assert chooser("stage", 4).layers_per_chord(1) == longest


def test_cheap_layers_share_a_chord_and_expensive_ones_do_not() -> None:
    # Given layers that cost less, or much more, than a chord / Then spans are long, or one layer
    assert learned(0.1, chord_s=0.002, layer_s=0.0005).layers_per_chord(1) == 6
    assert learned(0.1, chord_s=0.002, layer_s=0.1).layers_per_chord(1) == 1


@given(
    share=st.floats(0.02, 0.6),
    chord_s=st.floats(0.0002, 0.04),
    layer_s=st.floats(0.0001, 0.5),
)
def test_auto_keeps_chords_to_their_share_with_the_shortest_span(
    share: float, chord_s: float, layer_s: float
) -> None:
    # Given measured costs
    spans = learned(share, chord_s, layer_s)
    # When a span is chosen
    layers = spans.layers_per_chord(1)
    # Then a chord costs at most its share of it, unless the stage is too short for that
    assert 1 <= layers <= 6
    slack = 1 + 1e-3
    if layers < 6:
        assert chord_s <= share * (chord_s + layers * layer_s) * slack
    # And with one layer less, and so more chords, it would not
    if layers > 1:
        more = math.ceil(6 / (layers - 1))
        assert chord_s * slack >= share * (chord_s + 6 / more * layer_s)


def test_big_and_small_steps_are_learned_apart() -> None:
    # Given that one token is quick and a long prefill slow
    spans = chooser("auto")
    for _ in range(60):
        spans.learn(1, 1, 0.006, 0.008)
        spans.learn(512, 1, 0.6, 0.602)
    # Then each size has an expectation; a size without steps takes the nearest one's
    assert spans.layer_s(1) == pytest.approx(0.001)
    assert spans.layer_s(512) == pytest.approx(0.1)
    assert spans.layer_s(400) == pytest.approx(0.1)
    assert spans.layers_per_chord(512) < spans.layers_per_chord(1)


def test_a_long_pause_does_not_count_as_the_cost_of_a_chord() -> None:
    # Given steps that took seconds longer than their layers
    spans = chooser("auto")
    for _ in range(60):
        spans.learn(1, 1, 0.006, 5.0)
    # Then the cost of a chord is capped
    assert spans.chord_s <= 0.05
