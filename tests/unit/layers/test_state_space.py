"""The two forms of Mamba-2's recurrence agree, whatever the steps and decays."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skynet.layers.state_space import CHUNK, Scanned, StateSpace


@st.composite
def scans(draw: st.DrawFn) -> tuple[StateSpace, Scanned, torch.Tensor]:
    """The recurrence of some heads, tokens, and a state before them."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    heads, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    channels, state = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    tokens = draw(st.sampled_from([1, 2, 7, CHUNK, CHUNK + 1, 2 * CHUNK + 5]))
    # From states that never fade to those that fade at once
    decay = -torch.rand(heads) * draw(st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
    steps = torch.rand(tokens, heads) ** draw(st.integers(1, 6)) * draw(st.sampled_from([0.1, 8.0]))
    scanned = Scanned(
        torch.randn(tokens, heads, channels),
        steps,
        torch.randn(tokens, groups, state),
        torch.randn(tokens, groups, state),
    )
    space = StateSpace(decay, torch.randint(groups, (heads,)))
    return space, scanned, torch.randn(heads, channels, state)


@settings(max_examples=60)
@given(scan=scans())
def test_a_scan_is_a_step_for_each_token(scan: tuple[StateSpace, Scanned, torch.Tensor]) -> None:
    # Given tokens of a sequence
    space, tokens, before = scan
    # When they are computed one by one, and together in chunks
    states, outputs = before[None].clone(), []
    for at in range(len(tokens.values)):
        output, states = space.step(tokens.at(slice(at, at + 1)), states)
        outputs.append(output)
    together, state = space.scan(tokens, before)
    # Then outputs and state are the same, as far as float32 goes
    expected = torch.cat(outputs)
    scale = max(1.0, float(expected.abs().max()), float(states.abs().max()))
    torch.testing.assert_close(together, expected, atol=2e-5 * scale, rtol=0)
    torch.testing.assert_close(state, states[0], atol=2e-5 * scale, rtol=0)


def test_small_decays_after_large_ones_are_kept() -> None:
    # Given tokens at which a state fades at once, and then some at which it hardly does
    heads, tokens = 1, 40
    steps = torch.full((tokens, heads), 50.0)
    steps[20:] = 1e-3
    torch.manual_seed(0)
    scanned = Scanned(
        torch.randn(tokens, heads, 2), steps, torch.ones(tokens, 1, 1), torch.ones(tokens, 1, 1)
    )
    space = StateSpace(torch.tensor([-100.0]), torch.tensor([0]))
    # When they are computed in one chunk
    outputs, _ = space.scan(scanned, torch.zeros(heads, 2, 1))
    # Then the last ones are as exact as if the first had not been there
    alone, _ = space.scan(scanned.at(slice(19, None)), torch.zeros(heads, 2, 1))
    torch.testing.assert_close(outputs[20:], alone[1:], rtol=1e-5, atol=1e-7)


def test_steps_of_several_sequences_do_not_mix() -> None:
    # Given a token of each of two sequences
    torch.manual_seed(0)
    space = StateSpace(-torch.rand(4), torch.tensor([0, 0, 1, 1]))
    tokens = Scanned(
        torch.randn(2, 4, 3), torch.rand(2, 4), torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    )
    states = torch.randn(2, 4, 3, 5)
    # When they are computed in one call
    together, after = space.step(tokens, states.clone())
    # Then each is as it is alone
    for at in range(2):
        one = slice(at, at + 1)
        alone, state = space.step(tokens.at(one), states[one].clone())
        torch.testing.assert_close(together[one], alone)
        torch.testing.assert_close(after[one], state)
