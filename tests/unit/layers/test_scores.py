"""Scores of shards, put together, are the log-softmax over the whole vocabulary."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skynet.engine.scores import prompt_logprobs_of
from skynet.errors import WireError
from skynet.layers import scores
from skynet.layers.candidates import no_candidates
from skynet.planning.ranges import Range
from skynet.wire.scores import Scores, ScoresRequest
from skynet.wire.step import Candidates, LogitsRequest, Row

VOCAB = 12
LOGITS = st.lists(
    st.lists(st.sampled_from([-3.0, 0.5, 2.0, 2.0, 7.25]), min_size=VOCAB, max_size=VOCAB),
    min_size=2,
    max_size=7,
)


def scored(rows: list[Row], logits: torch.Tensor, cuts: list[int]) -> list[list[Candidates]]:
    """The candidates of all rows, by shard."""
    edges = [0, *sorted(cuts), VOCAB]
    return [
        scores.with_scores(
            rows,
            [no_candidates()] * sum(row.logits_request is not None for row in rows),
            Range(start, stop),
            lambda tokens, start=start, stop=stop: logits[list(tokens), start:stop],
        )
        for start, stop in pairwise(edges)
    ]


@given(
    logits=LOGITS,
    cuts=st.lists(st.integers(0, VOCAB), max_size=3),
    top=st.integers(0, VOCAB),
    block=st.integers(1, 40),
    data=st.data(),
)
def test_scores_of_any_cut_are_those_of_the_whole_vocabulary(
    logits: list[list[float]], cuts: list[int], top: int, block: int, data: st.DataObject
) -> None:
    # Given a row after another one, with ties among its logits
    count = len(logits) - 1
    first = data.draw(st.integers(0, count - 1))
    targets = tuple(data.draw(st.integers(0, VOCAB - 1)) for _ in range(count - first))
    request = ScoresRequest(first, targets, top)
    rows = [Row(0, 0, (1,), 1, LogitsRequest()), Row(1, 0, (1,) * count, count, scores=request)]
    # When the vocabulary is cut anywhere, and positions are computed in blocks of any size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "BLOCK_NUMBERS", block)
        shards = scored(rows, torch.tensor(logits), cuts)
    assert all(shard[0].scores is None for shard in shards)
    logprobs = prompt_logprobs_of([shard[1] for shard in shards], top)
    # Then each target has its log-probability, and the likeliest are in order, ties by their id
    whole = np.asarray(torch.tensor(logits, dtype=torch.float64).log_softmax(dim=-1))
    for item, target, known in zip(logprobs, targets, whole[1 + first :], strict=True):
        assert item.logprob == pytest.approx(known[target], abs=1e-6)
        ranked = sorted(range(VOCAB), key=lambda token: (-known[token], token))[:top]
        assert [token for token, _ in item.top] == ranked
        assert [value for _, value in item.top] == pytest.approx(known[ranked], abs=1e-6)
        assert dict(item.top).get(target, item.logprob) == item.logprob


NUMBERS = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("first", "targets", "top"),
    [(-1, [1], 0), (3, [1], 0), (0, [1] * 4, 0), (0, [], 0), (0, [-1], 0), (0, [1], 1001)],
)
def test_a_request_that_does_not_fit_its_row_is_refused(
    first: int, targets: list[int], top: int
) -> None:
    with pytest.raises(WireError):
        ScoresRequest.unpack([first, np.array(targets, np.int32), top], 3)


@pytest.mark.parametrize(
    "fields",
    [
        [NUMBERS, NUMBERS, NUMBERS, NUMBERS],
        [np.zeros(2), NUMBERS, np.zeros((2, 1), np.int32), np.zeros((2, 2), np.float32)],
        [np.zeros(3), NUMBERS, np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32)],
        [np.zeros(2), NUMBERS, -np.ones((2, 1), np.int32), np.zeros((2, 1), np.float32)],
    ],
)
def test_scores_of_other_shapes_are_refused(fields: list[Any]) -> None:
    with pytest.raises(WireError):
        Scores.unpack(fields)
