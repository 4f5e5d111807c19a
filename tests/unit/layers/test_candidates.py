"""Candidates are what sampling over the whole vocabulary could need, ties and all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skynet.errors import StepFailed
from skynet.layers.candidates import pick
from skynet.wire.step import LogitsRequest, Part, Row, Step

# Few distinct values, so that ties are common.
LOGITS = st.lists(st.integers(-6, 6).map(lambda value: value / 2), min_size=1, max_size=40)


@given(logits=LOGITS, top=st.integers(1, 45))
def test_top_is_by_falling_logit_then_rising_id(logits: list[float], top: int) -> None:
    # When the best are picked of a shard that starts at token 100
    candidates = pick(torch.tensor([logits]), [LogitsRequest(top=top)], 100)[0]
    # Then they are the first of all, sorted
    expected = sorted(range(len(logits)), key=lambda index: (-logits[index], index))[:top]
    assert candidates.ids.tolist() == [100 + index for index in expected]
    assert candidates.logits.tolist() == [logits[index] for index in expected]
    assert candidates.ids.dtype == np.int32
    assert candidates.logits.dtype == np.float32


@given(logits=LOGITS)
def test_peak_and_mass_are_of_the_whole_shard(logits: list[float]) -> None:
    # When only one is picked
    candidates = pick(torch.tensor([logits]), [LogitsRequest()], 0)[0]
    # Then peak and mass still count all
    assert candidates.peak == max(logits)
    assert candidates.mass == pytest.approx(sum(np.exp(np.array(logits) - max(logits))), rel=1e-5)


@given(
    logits=LOGITS,
    top=st.integers(0, 45),
    floor=st.floats(1e-4, 0.5),
    temperature=st.floats(0.2, 3.0),
)
def test_a_floor_keeps_every_token_that_is_probable_enough(
    logits: list[float], top: int, floor: float, temperature: float
) -> None:
    # When a floor and a limit are asked for
    logits_request = LogitsRequest(top=top, floor=floor, temperature=temperature)
    candidates = pick(torch.tensor([logits]), [logits_request], 7)[0]
    # Then every token clearly above the floor is there, none clearly below, the best first
    shares = np.exp((np.array(logits) - max(logits)) / temperature)
    shares /= shares.sum()
    ranked = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    above = [index for index in ranked if shares[index] >= floor]
    around = [index for index in ranked if shares[index] >= floor * 0.999]
    ids = [int(token) - 7 for token in candidates.ids]
    assert ids == (around[:top] if top else around)[: len(ids)]
    assert len(ids) >= (min(top, len(above)) if top else len(above))


def test_without_a_limit_all_candidates_come_in_order_of_id() -> None:
    # When / Then
    candidates = pick(torch.tensor([[1.0, 3.0, 2.0]]), [LogitsRequest(top=0)], 5)[0]
    assert candidates.ids.tolist() == [5, 6, 7]
    assert candidates.logits.tolist() == [1.0, 3.0, 2.0]


def test_each_row_has_its_logits_request() -> None:
    # Given two rows
    logits = torch.tensor([[1.0, 3.0, 2.0], [9.0, 0.0, 8.0]])
    # When their requests differ / Then each row gets the number it requests
    first, second = pick(logits, [LogitsRequest(top=1), LogitsRequest(top=2)], 0)
    assert (first.ids.tolist(), second.ids.tolist()) == ([1], [0, 2])


def test_a_shard_without_vocabulary_has_no_candidates() -> None:
    # When / Then
    candidates = pick(torch.empty(1, 0), [LogitsRequest()], 5)[0]
    assert (len(candidates.ids), candidates.peak, candidates.mass) == (0, float("-inf"), 0.0)


def test_a_floor_without_temperature_is_refused() -> None:
    # When / Then
    with pytest.raises(StepFailed, match="temperature above 0, got 0"):
        pick(torch.zeros(1, 3), [LogitsRequest(top=0, floor=0.1, temperature=0.0)], 0)


@given(logits=LOGITS, ids=st.sets(st.integers(0, 45)), top=st.integers(1, 5), data=st.data())
def test_requested_ids_come_after_the_best_of_the_others(
    logits: list[float], ids: set[int], top: int, data: st.DataObject
) -> None:
    # Given a row that asks for some tokens, next to one that does not
    order = tuple(data.draw(st.permutations(sorted(ids))))
    logits_requests = [LogitsRequest(top=top, ids=order), LogitsRequest(top=top)]
    # When they are picked of a shard that starts at token 3
    candidates, plain = pick(torch.tensor([logits, logits]), logits_requests, 3)
    # Then they come last, and count for nothing else
    of_shard = [token for token in order if 3 <= token < 3 + len(logits)]
    others = [index for index in range(len(logits)) if index + 3 not in ids]
    best = sorted(others, key=lambda index: (-logits[index], index))[:top]
    assert candidates.ids.tolist() == [*(index + 3 for index in best), *of_shard]
    assert candidates.logits.tolist() == [logits[token - 3] for token in candidates.ids]
    assert candidates.peak == max((logits[index] for index in others), default=float("-inf"))
    masses = [np.exp(logits[index] - candidates.peak) for index in others]
    assert candidates.mass == pytest.approx(sum(masses), rel=1e-5)
    # And the other row is unchanged
    assert (
        plain.ids.tolist() == pick(torch.tensor([logits]), logits_requests[1:], 3)[0].ids.tolist()
    )


def test_candidates_and_logits_requests_round_trip() -> None:
    # Given a step and a part with everything in them
    logits_request = LogitsRequest(2, 0.25, 0.5, (5, 1), 2)
    rows = (
        Row(0, 3, (7,), 3, logits_request, source=4),
        Row(1, 0, (1, 2), 2),
        Row(2, 0, (1,), 1, LogitsRequest(0)),
    )
    step = Step(1, 2, rows, 3)
    (picked,) = pick(torch.tensor([[1.0, 2.0, 0.5]]), [logits_request], 4)
    # When they are written and read
    (candidates,) = Part.decode(Part(None, [picked]).encode()).candidates
    # Then they are the same
    assert Step.decode(step.encode()) == step
    assert (candidates.ids.tolist(), candidates.logits.tolist()) == ([4, 6, 5], [1.0, 0.5, 2.0])
    assert candidates.best is not None
    assert (candidates.best.ids.tolist(), candidates.best.logits.tolist()) == ([5, 4], [2.0, 1.0])
    assert candidates.best.total == pytest.approx(float(np.log(np.exp([1.0, 2.0, 0.5]).sum())))
