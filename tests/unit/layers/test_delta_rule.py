"""The gated delta rule in chunks, token by token and as its formula are the same."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skynet.layers.delta_rule import CHUNK, DeltaTokens, delta_chunks, delta_rule, delta_steps
from skynet.wire.step import Row


def random_tokens(
    seed: int, count: int, heads: int, dims: tuple[int, int], beta_scale: float, decay: float
) -> DeltaTokens:
    """Keys and queries of length 1, in float64."""
    made = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(count, heads, *shape, generator=made, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(randn(dims[0]), dim=-1) for _ in "qk")
    decays, betas = -decay * randn().abs(), randn().sigmoid() * beta_scale
    return DeltaTokens(q, k, randn(dims[1]), decays, betas)


def by_formula(tokens: DeltaTokens, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S = decay (I - beta k k^T) S + beta k v^T and S^T q, a token and a head at a time."""
    q, k, v, log_decay, beta = tokens
    state, outputs = state.clone(), torch.empty_like(v)
    for token in range(len(q)):
        for head in range(q.shape[1]):
            key, value, rate = k[token, head], v[token, head], beta[token, head]
            kept = torch.eye(len(key), dtype=key.dtype) - rate * key.outer(key)
            decayed = log_decay[token, head].exp() * state[head]
            state[head] = kept @ decayed + rate * key.outer(value)
            outputs[token, head] = state[head].t() @ q[token, head]
    return outputs, state


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "heads": st.integers(1, 3),
        "dims": st.tuples(st.integers(1, 9), st.integers(1, 9)),
        "beta_scale": st.sampled_from([1.0, 2.0]),
        "decay": st.sampled_from([0.0, 0.1, 3.0, 300.0]),
    }
)


@settings(max_examples=40, deadline=None)
@given(CASES, st.integers(2, 2 * CHUNK + 3))
def test_chunks_and_steps_are_the_formula(case: dict[str, Any], count: int) -> None:
    # Given tokens and a state before them
    tokens = random_tokens(count=count, **case)
    state = torch.randn(case["heads"], *case["dims"], dtype=torch.float64)
    expected, after = by_formula(tokens, state)
    # When they are computed at once, and one by one
    outputs, last = delta_chunks(tokens, state)
    stepped, one_by_one = state[None].clone(), []
    for token in range(count):
        one_by_one.append(delta_steps(tokens.at([token]), stepped))
    # Then both are the formula
    torch.testing.assert_close(outputs, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(last, after, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(torch.cat(one_by_one), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(stepped[0], after, atol=1e-9, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(CASES, st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_rows_of_a_step_do_not_see_each_other(case: dict[str, Any], counts: list[int]) -> None:
    # Given rows of one token and of several, each with a state
    tokens = random_tokens(count=sum(counts), **case)
    states = torch.randn(len(counts), case["heads"], *case["dims"], dtype=torch.float64)
    rows = [Row(slot, 3, (0,) * count, 99) for slot, count in enumerate(counts)]
    ends = list(accumulate(counts))
    parts = [tokens.at(slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]
    expected = [by_formula(part, state) for part, state in zip(parts, states, strict=True)]
    # When they are one step
    outputs, after = delta_rule(tokens, rows, states.clone())
    # Then each has what it has alone
    torch.testing.assert_close(outputs, torch.cat([each for each, _ in expected]))
    torch.testing.assert_close(after, torch.stack([each for _, each in expected]))


@pytest.mark.parametrize("count", [1, CHUNK, 500])
def test_float32_is_exact_over_long_rows(count: int) -> None:
    # Given a long row whose tokens overwrite much of the state
    tokens = random_tokens(7, count, 2, (16, 16), 2.0, 0.05)
    state = torch.zeros(2, 16, 16, dtype=torch.float64)
    expected, after = by_formula(tokens, state)
    # When it is computed in float32
    outputs, last = delta_chunks(DeltaTokens._make(each.float() for each in tokens), state.float())
    # Then the error is float32's rounding
    torch.testing.assert_close(outputs.double(), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(last.double(), after, atol=2e-5, rtol=0)
