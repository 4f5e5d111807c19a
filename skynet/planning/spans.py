"""How many layers one chord covers with chord_span=auto. Pure."""

from __future__ import annotations

from math import ceil

CHORD_SHARE = 0.05  # the default of SKYNET_CHORD_SHARE


def layers_per_chord(longest: int, chord_s: float, layer_s: float, chord_share: float) -> int:
    """The fewest layers whose chords cost at most `chord_share` of a step.

    longest: layers of the longest stage, which is cut into equal spans.
    chord_s, layer_s: expected seconds of a chord and of the compute of a layer.
    """
    # n layers and one chord: chord <= share * (chord + n * layer)
    needed = chord_s * (1 / chord_share - 1) / max(layer_s, 1e-9)
    chords = max(1, min(longest, int(longest / max(needed, 1.0))))
    return ceil(longest / chords)
