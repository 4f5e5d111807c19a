"""Picks from one shard's logits what a row may need for its next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from skynet.errors import StepFailed
from skynet.wire.step import Best, Candidates, LogitsRequest

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Shares are compared with a floor in float32: nothing at the floor itself may be lost to rounding.
FLOOR_SLACK = 1 - 1e-4


def pick(
    logits: torch.Tensor, logits_requests: Sequence[LogitsRequest], first_id: int
) -> list[Candidates]:
    """`logits` (rows, vocabulary of this shard) float32; `first_id` is the token of column 0.

    A row's candidates are sorted by falling logit, then rising id; without any limit, by id. Those
    of `LogitsRequest.ids` that are this shard's come after them, in their own order.
    """
    if logits.shape[1] == 0:
        return [_nothing(logits_request) for logits_request in logits_requests]
    if any(
        logits_request.ids or logits_request.logprobs is not None
        for logits_request in logits_requests
    ):
        return _with_extras(logits, logits_requests, first_id)
    return _plain(logits, logits_requests, first_id)


def _plain(
    logits: torch.Tensor, logits_requests: Sequence[LogitsRequest], first_id: int
) -> list[Candidates]:
    """Without `LogitsRequest.ids` and `LogitsRequest.logprobs`; -inf is never offered."""
    peaks = logits.amax(dim=1, keepdim=True)
    # As sampling will scale them: greedy rows, which look at no mass, have a temperature of 1.
    temperatures = torch.tensor(
        [[logits_request.temperature] for logits_request in logits_requests], device=logits.device
    )
    least = torch.finfo(logits.dtype).min  # where all are -inf: their difference is no number
    masses = ((logits - peaks.clamp_min(least)) / temperatures).exp_().sum(dim=1).tolist()
    rows, tops = logits.cpu().numpy(), peaks[:, 0].tolist()
    picked = []
    for row, logits_request, peak, mass in zip(rows, logits_requests, tops, masses, strict=True):
        ids = _chosen(row, logits_request, peak) if peak > -np.inf else np.empty(0, np.int64)
        picked.append(Candidates((ids + first_id).astype(np.int32), row[ids], peak, mass))
    return picked


def _with_extras(
    logits: torch.Tensor, logits_requests: Sequence[LogitsRequest], first_id: int
) -> list[Candidates]:
    """`LogitsRequest.ids` are hidden from the choice, and put behind what is chosen."""
    hidden = logits.clone()
    asides = [
        _aside(logits_request, first_id, logits.shape[1]) for logits_request in logits_requests
    ]
    for row, aside in zip(hidden, asides, strict=True):
        row[torch.from_numpy(aside)] = -torch.inf
    raw, picked = logits.cpu().numpy(), []
    for number, found in enumerate(_plain(hidden, logits_requests, first_id)):
        aside, seen = asides[number], found.logits > -np.inf
        picked.append(
            Candidates(
                np.concatenate((found.ids[seen], (aside + first_id).astype(np.int32))),
                np.concatenate((found.logits[seen], raw[number][aside])),
                found.peak,
                found.mass,
                _best(raw[number], logits_requests[number], first_id),
            )
        )
    return picked


def _nothing(logits_request: LogitsRequest) -> Candidates:
    """What a shard without vocabulary offers."""
    ids, logits = np.empty(0, np.int32), np.empty(0, np.float32)
    best = None if logits_request.logprobs is None else Best(ids, logits, float("-inf"))
    return Candidates(ids, logits, float("-inf"), 0.0, best)


def _aside(logits_request: LogitsRequest, first_id: int, size: int) -> Ints:
    """Columns of `LogitsRequest.ids`."""
    columns = np.asarray(logits_request.ids, dtype=np.int64) - first_id
    return columns[(columns >= 0) & (columns < size)]


def _best(row: Floats, logits_request: LogitsRequest, first_id: int) -> Best | None:
    if logits_request.logprobs is None:
        return None
    peak = float(row.max())
    total = peak + float(np.log(np.exp(row.astype(np.float64) - peak).sum()))
    columns = (
        _chosen(row, LogitsRequest(logits_request.logprobs), peak)
        if logits_request.logprobs
        else np.empty(0, np.int64)
    )
    return Best((columns + first_id).astype(np.int32), row[columns], total)


def _chosen(row: Floats, logits_request: LogitsRequest, peak: float) -> Ints:
    """Columns of the candidates."""
    if logits_request.top == 1:  # the most probable token is above any floor that anything is above
        best = np.array([np.argmax(row)])
        return (
            best
            if logits_request.floor <= 0
            else best[_above_floor(row, logits_request, peak)[best]]
        )
    if logits_request.floor > 0:
        ids = np.flatnonzero(_above_floor(row, logits_request, peak))
    elif logits_request.top == 0 or logits_request.top >= len(row):
        return np.arange(len(row)) if logits_request.top == 0 else _sorted(row, np.arange(len(row)))
    else:
        # Everything at the k-th largest logit or above: ties beyond k are cut by id below.
        threshold = np.partition(row, len(row) - logits_request.top)[len(row) - logits_request.top]
        ids = np.flatnonzero(row >= threshold)
    ids = _sorted(row, ids)
    return ids[: logits_request.top] if logits_request.top else ids


def _above_floor(row: Floats, logits_request: LogitsRequest, peak: float) -> npt.NDArray[np.bool_]:
    """Which columns have at least `floor` of the shard's mass at `temperature`."""
    if logits_request.temperature <= 0:
        raise StepFailed(f"a floor needs a temperature above 0, got {logits_request.temperature}")
    masses = np.exp((row - np.float32(peak)) / np.float32(logits_request.temperature))
    above: npt.NDArray[np.bool_] = masses >= masses.sum() * logits_request.floor * FLOOR_SLACK
    return above


def _sorted(row: Floats, ids: Ints) -> Ints:
    order: Ints = ids[np.lexsort((ids, -row[ids]))]
    return order
