"""Picks the candidates for a row's next token from one shard's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from skynet.errors import StepFailed
from skynet.layers.token_masks import TokenMasks
from skynet.wire.step import Best, Candidates, LogitsRequest

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Shares are compared with a floor in float32: tokens exactly at the floor must survive rounding.
FLOOR_SLACK = 1 - 1e-4


def pick(
    logits: torch.Tensor,
    logits_requests: Sequence[LogitsRequest],
    first_id: int,
    masks: TokenMasks | None = None,
) -> list[Candidates]:
    """`logits` (rows, vocabulary of this shard) float32; `first_id` is the token of column 0.

    masks: those that earlier requests brought to this shard.

    A row's candidates are sorted by falling logit, then rising id; without a limit, by id. The
    shard's tokens among `LogitsRequest.ids` follow, in the order of `ids`.
    """
    if logits.shape[1] == 0:
        return [_no_vocabulary(request) for request in logits_requests]
    if any(each.ids or each.logprobs is not None or each.mask for each in logits_requests):
        masks = masks or TokenMasks(first_id, logits.shape[1])
        return _with_extras(
            _masked(logits, logits_requests, masks), logits, logits_requests, first_id
        )
    return _plain(logits, logits_requests, first_id)


def _plain(
    logits: torch.Tensor, logits_requests: Sequence[LogitsRequest], first_id: int
) -> list[Candidates]:
    """The candidates without `LogitsRequest.ids` and `logprobs`; logits of -inf are left out."""
    peaks = logits.amax(dim=1, keepdim=True)
    # As in sampling; greedy rows, which do not use the mass, have a temperature of 1.
    temperatures = torch.tensor(
        [[request.temperature] for request in logits_requests], device=logits.device
    )
    minimum = torch.finfo(logits.dtype).min  # -inf minus -inf would be NaN
    masses = (logits - peaks.clamp_min(minimum)).div_(temperatures).exp_().sum(dim=1).tolist()
    rows, row_peaks = logits.cpu().numpy(), peaks[:, 0].tolist()
    picked = []
    for row, request, peak, mass in zip(rows, logits_requests, row_peaks, masses, strict=True):
        ids = _chosen(row, request, peak) if peak > -np.inf else np.empty(0, np.int64)
        picked.append(Candidates((ids + first_id).astype(np.int32), row[ids], peak, mass))
    return picked


def _masked(
    logits: torch.Tensor, logits_requests: Sequence[LogitsRequest], masks: TokenMasks
) -> torch.Tensor:
    """A copy of the logits, with -inf for tokens that a request's mask forbids."""
    masked = logits.clone()
    for row, request in zip(masked, logits_requests, strict=True):
        if request.mask is not None:
            row[torch.from_numpy(masks.forbidden(request.mask))] = -torch.inf
    return masked


def _with_extras(
    hidden: torch.Tensor,
    logits: torch.Tensor,
    logits_requests: Sequence[LogitsRequest],
    first_id: int,
) -> list[Candidates]:
    """With `LogitsRequest.ids` hidden from the choice and appended to it, and with `logprobs`.

    hidden: a copy of the logits, which is changed.
    """
    appended = [_columns(request.ids, first_id, logits.shape[1]) for request in logits_requests]
    for row, columns in zip(hidden, appended, strict=True):
        row[torch.from_numpy(columns)] = -torch.inf
    raw, picked = logits.cpu().numpy(), []
    for number, chosen in enumerate(_plain(hidden, logits_requests, first_id)):
        columns, finite = appended[number], chosen.logits > -np.inf
        picked.append(
            Candidates(
                np.concatenate((chosen.ids[finite], (columns + first_id).astype(np.int32))),
                np.concatenate((chosen.logits[finite], raw[number][columns])),
                chosen.peak,
                chosen.mass,
                _best(raw[number], logits_requests[number], first_id),
            )
        )
    return picked


def likeliest(logits: torch.Tensor, count: int) -> tuple[Ints, Floats]:
    """Columns and logits (rows, count) of the largest, by falling logit, then rising column."""
    values, found = logits.topk(count, dim=1)
    columns: Ints = found.numpy().astype(np.int64)
    # `topk` takes any of equal ones: rows with a tie at their last place are chosen by hand.
    tied = (logits >= values[:, -1:]).sum(dim=1) > count
    for row in tied.nonzero()[:, 0].tolist():
        numbers = logits[row].numpy()
        columns[row] = _chosen(numbers, LogitsRequest(count), float(values[row, 0]))
    best: Floats = np.take_along_axis(logits.numpy(), columns, axis=1)
    order = np.lexsort((columns, -best), axis=1)
    return np.take_along_axis(columns, order, 1), np.take_along_axis(best, order, 1)


def no_candidates() -> Candidates:
    """Of a shard without vocabulary, or of a row without a logits request."""
    return Candidates(np.empty(0, np.int32), np.empty(0, np.float32), float("-inf"), 0.0)


def _no_vocabulary(request: LogitsRequest) -> Candidates:
    none = no_candidates()
    if request.logprobs is None:
        return none
    return replace(none, best=Best(none.ids, none.logits, float("-inf")))


def _columns(ids: Sequence[int], first_id: int, size: int) -> Ints:
    """The columns of the tokens `ids` that are in this shard."""
    columns = np.asarray(ids, dtype=np.int64) - first_id
    return columns[(columns >= 0) & (columns < size)]


def _best(row: Floats, request: LogitsRequest, first_id: int) -> Best | None:
    if request.logprobs is None:
        return None
    peak = float(row.max())
    total = peak + float(np.log(np.exp(row.astype(np.float64) - peak).sum()))
    columns = np.empty(0, np.int64)
    if request.logprobs:
        columns = _chosen(row, LogitsRequest(request.logprobs), peak)
    return Best((columns + first_id).astype(np.int32), row[columns], total)


def _chosen(row: Floats, request: LogitsRequest, peak: float) -> Ints:
    """The columns of the candidates."""
    top = request.top
    if top == 1:  # if any token is above the floor, the most probable one is
        best = np.array([np.argmax(row)])
        return best if request.floor <= 0 else best[_above_floor(row, request, peak)[best]]
    if request.floor > 0:
        ids = np.flatnonzero(_above_floor(row, request, peak))
    elif top == 0 or top >= len(row):
        return np.arange(len(row)) if top == 0 else _sorted(row, np.arange(len(row)))
    else:
        # All logits from the k-th largest on; ties beyond k are cut by id below.
        threshold = np.partition(row, len(row) - top)[len(row) - top]
        ids = np.flatnonzero(row >= threshold)
    ids = _sorted(row, ids)
    return ids[:top] if top else ids


def _above_floor(row: Floats, request: LogitsRequest, peak: float) -> npt.NDArray[np.bool_]:
    """Which columns have at least `floor` of the shard's mass at `temperature`."""
    if request.temperature <= 0:
        raise StepFailed(f"a floor needs a temperature above 0, got {request.temperature}")
    masses = np.exp((row - np.float32(peak)) / np.float32(request.temperature))
    above: npt.NDArray[np.bool_] = masses >= masses.sum() * request.floor * FLOOR_SLACK
    return above


def _sorted(row: Floats, ids: Ints) -> Ints:
    order: Ints = ids[np.lexsort((ids, -row[ids]))]
    return order
