"""Prompt KV shared by samples of one prompt: the first computes it, the others copy it."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items

from skynet.engine.sequence import Sequence


def donor_of(sequence: Sequence, running: Items[Sequence]) -> Sequence | None:
    """Another sample that has computed the prompt, if `sequence` still needs it."""
    for sample in _samples(sequence, running):
        if sample.mode.computed >= len(sequence.output.prefix):
            return sample
    return None


def waits_for_prompt(sequence: Sequence, running: Items[Sequence]) -> bool:
    """Whether an earlier sample is computing the prompt."""
    if donor_of(sequence, running) is not None:
        return False
    return next(_samples(sequence, running), sequence) is not sequence


def _samples(sequence: Sequence, running: Items[Sequence]) -> Iterator[Sequence]:
    """Running samples of the same prompt, in their order; none if there is nothing to copy.

    Suspect sequences neither share nor receive prompt KV, nor do sequences on different sides of
    the RoPE switch.
    """
    group, output = sequence.record.sample_group, sequence.output
    if not group or sequence.mode.computed or sequence.suspect or len(output.prefix) < 2:
        return
    if output.is_recurrent:  # the first sample's state is of the whole prompt, or of more
        return
    is_past = output.is_past_rope_switch
    for other in running:
        alike = other.output.is_past_rope_switch == is_past and not other.suspect
        if other.record.sample_group == group and alike:
            yield other
