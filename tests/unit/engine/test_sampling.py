"""Sampling over shards' candidates is sampling over the whole vocabulary."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from skynet.engine.sampling import gumbel_noise, logits_request_of, sample
from skynet.layers.candidates import pick
from skynet.request.record import Options
from skynet.wire.step import Candidates

DRAWS = 4000
LOGITS = [2.0, -1.0, 0.5, 3.0, 3.0, -4.0, 1.0, 0.0, 2.5, -0.5, 1.5, -2.0]


def shard_candidates(logits: list[float], cuts: list[int], options: Options) -> list[Candidates]:
    """Candidates of the vocabulary shards [0, cuts[0]), [cuts[0], cuts[1]), ..."""
    edges = [0, *sorted(cuts), len(logits)]
    return [
        pick(torch.tensor([logits[start:stop]]), [logits_request_of(options)], start)[0]
        for start, stop in pairwise(edges)
    ]


def expected_probabilities(logits: list[float], options: Options) -> npt.NDArray[np.float64]:
    """Hugging Face's order of the filters, by hand: temperature, top-k, top-p, softmax."""
    scaled = np.array(logits, np.float64) / options.temperature
    order = sorted(range(len(logits)), key=lambda token: (-scaled[token], token))
    if options.top_k:
        order = order[: options.top_k]
    weights = np.exp(scaled[order] - scaled.max())
    weights /= weights.sum()
    kept = [at for at in range(len(order)) if weights[:at].sum() < options.top_p]
    result = np.zeros(len(logits))
    for at in kept:
        result[order[at]] = weights[at] / weights[kept].sum()
    return result


@given(
    logits=st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_greedy_takes_the_largest_logit_and_of_equals_the_smallest_id(
    logits: list[float], cuts: list[int]
) -> None:
    # Given ties / When the vocabulary is cut anywhere, also into empty parts
    cuts = [min(cut, len(logits)) for cut in cuts]
    # Then the token is the first of the largest
    token = sample(shard_candidates(logits, cuts, Options()), Options(), 0)
    assert token == int(np.argmax(logits))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.5, "top_p": 0.8},
        {"temperature": 2.0, "top_p": 0.6},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8},
    ],
    ids=str,
)
@pytest.mark.parametrize("cuts", [[], [2, 3, 9]], ids=str)
def test_draws_follow_the_distribution(fields: dict[str, float], cuts: list[int]) -> None:
    # Given logits, options and a cut vocabulary
    expected = expected_probabilities(LOGITS, Options(**fields))
    # When many tokens are drawn, each with its seed
    counts = np.zeros(len(LOGITS))
    candidates = shard_candidates(LOGITS, cuts, Options(**fields))
    for seed in range(DRAWS):
        counts[sample(candidates, Options(**fields, seed=seed), seed % 7)] += 1
    # Then the frequencies are the probabilities, 0 for filtered tokens
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    chi_square = ((counts - DRAWS * expected) ** 2)[expected > 0] / (DRAWS * expected[expected > 0])
    assert chi_square.sum() < 35  # 11 degrees of freedom: 1 in 5,000; the seeds are fixed


@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    temperature=st.floats(0.1, 4),
    top_k=st.sampled_from([0, 0, 1, 3, 20]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1, 1e-6]),
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 10_000),
)
def test_the_same_seed_gives_the_same_token_however_the_vocabulary_is_cut(
    logits: list[float],
    cuts: list[int],
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    index: int,
) -> None:
    options = Options(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    cuts = [min(cut, len(logits)) for cut in cuts]
    assume(_clear_of_the_edge(logits, options))
    # Given one vocabulary, whole and cut, its parts in any order
    whole = sample(shard_candidates(logits, [], options), options, index)
    parts = shard_candidates(logits, cuts, options)
    # Then the token is the same, and one that the filters leave
    assert sample(parts, options, index) == whole
    assert sample(parts[::-1], options, index) == whole
    assert expected_probabilities(logits, options)[whole] > 0


def _clear_of_the_edge(logits: list[float], options: Options) -> bool:
    """Whether no cumulated probability is so near to top_p that rounding decides."""
    scaled = np.array(logits, np.float64) / options.temperature
    weights = np.sort(np.exp(scaled - scaled.max()))[::-1]
    weights = weights[: options.top_k] if options.top_k else weights
    shares = np.cumsum(weights) / weights.sum()
    return bool((np.abs(shares - options.top_p) > 1e-5).all() or options.top_p == 1)


@given(
    logits=st.lists(st.floats(-20, 8, width=32), min_size=2, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    temperature=st.floats(0.2, 3),
    top_p=st.floats(0.05, 0.999),
)
def test_the_floor_never_loses_a_token_of_the_nucleus(
    logits: list[float], cuts: list[int], temperature: float, top_p: float
) -> None:
    # Given a nucleus
    options = Options(temperature=temperature, top_p=top_p, seed=1)
    nucleus = set(np.flatnonzero(expected_probabilities(logits, options)))
    # When shards return only tokens above the floor
    parts = shard_candidates(logits, [min(cut, len(logits)) for cut in cuts], options)
    # Then all of the nucleus is among them
    assert nucleus <= {int(token) for part in parts for token in part.ids}


def test_the_floor_saves_most_of_a_peaked_vocabulary() -> None:
    # Given one token far above 9,999 others
    options = Options(temperature=0.5, top_p=0.9, seed=1)
    (candidates,) = shard_candidates([20.0, *[0.0] * 9999], [], options)
    # Then only that one is sent
    assert candidates.ids.tolist() == [0]


def test_noise_belongs_to_seed_index_and_token() -> None:
    # Given the noise of some tokens
    ids = np.array([3, 1, 70_000], np.int32)
    noise = gumbel_noise(7, 4, ids)
    # Then the noise of a token does not depend on the other tokens, but on all else
    assert noise[1] == gumbel_noise(7, 4, ids[1:2])[0]
    assert len({noise[0], noise[1], gumbel_noise(8, 4, ids)[0], gumbel_noise(7, 5, ids)[0]}) == 4
    many = gumbel_noise(1, 0, np.arange(100_000, dtype=np.int32))
    assert many.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert many.var() == pytest.approx(np.pi**2 / 6, abs=0.05)
