"""Picks from one shard's logits what a row may need for its next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from skynet.errors import StepFailed
from skynet.wire.step import Best, Candidates, Want

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Shares are compared with a floor in float32: nothing at the floor itself may be lost to rounding.
FLOOR_SLACK = 1 - 1e-4


def pick(logits: torch.Tensor, wants: Sequence[Want], first_id: int) -> list[Candidates]:
    """`logits` (rows, vocabulary of this shard) float32; `first_id` is the token of column 0.

    A row's candidates are sorted by falling logit, then rising id; without any limit, by id. Those
    of `want.ids` that are this shard's come after them, in their own order.
    """
    if logits.shape[1] == 0:
        return [_nothing(want) for want in wants]
    if any(want.ids or want.logprobs is not None for want in wants):
        return _with_extras(logits, wants, first_id)
    return _plain(logits, wants, first_id)


def _plain(logits: torch.Tensor, wants: Sequence[Want], first_id: int) -> list[Candidates]:
    """Without `want.ids` and `want.logprobs`; -inf is never offered."""
    peaks = logits.amax(dim=1, keepdim=True)
    # As sampling will scale them: greedy rows, which look at no mass, have a temperature of 1.
    temperatures = torch.tensor([[want.temperature] for want in wants], device=logits.device)
    least = torch.finfo(logits.dtype).min  # where all are -inf: their difference is no number
    masses = ((logits - peaks.clamp_min(least)) / temperatures).exp_().sum(dim=1).tolist()
    rows, tops = logits.cpu().numpy(), peaks[:, 0].tolist()
    picked = []
    for row, want, peak, mass in zip(rows, wants, tops, masses, strict=True):
        ids = _chosen(row, want, peak) if peak > -np.inf else np.empty(0, np.int64)
        picked.append(Candidates((ids + first_id).astype(np.int32), row[ids], peak, mass))
    return picked


def _with_extras(logits: torch.Tensor, wants: Sequence[Want], first_id: int) -> list[Candidates]:
    """`want.ids` are hidden from the choice, and put behind what is chosen."""
    hidden = logits.clone()
    asides = [_aside(want, first_id, logits.shape[1]) for want in wants]
    for row, aside in zip(hidden, asides, strict=True):
        row[torch.from_numpy(aside)] = -torch.inf
    raw, picked = logits.cpu().numpy(), []
    for number, found in enumerate(_plain(hidden, wants, first_id)):
        aside, seen = asides[number], found.logits > -np.inf
        picked.append(
            Candidates(
                np.concatenate((found.ids[seen], (aside + first_id).astype(np.int32))),
                np.concatenate((found.logits[seen], raw[number][aside])),
                found.peak,
                found.mass,
                _best(raw[number], wants[number], first_id),
            )
        )
    return picked


def _nothing(want: Want) -> Candidates:
    """What a shard without vocabulary offers."""
    ids, logits = np.empty(0, np.int32), np.empty(0, np.float32)
    best = None if want.logprobs is None else Best(ids, logits, float("-inf"))
    return Candidates(ids, logits, float("-inf"), 0.0, best)


def _aside(want: Want, first_id: int, size: int) -> Ints:
    """Columns of `want.ids`."""
    columns = np.asarray(want.ids, dtype=np.int64) - first_id
    return columns[(columns >= 0) & (columns < size)]


def _best(row: Floats, want: Want, first_id: int) -> Best | None:
    if want.logprobs is None:
        return None
    peak = float(row.max())
    total = peak + float(np.log(np.exp(row.astype(np.float64) - peak).sum()))
    columns = _chosen(row, Want(want.logprobs), peak) if want.logprobs else np.empty(0, np.int64)
    return Best((columns + first_id).astype(np.int32), row[columns], total)


def _chosen(row: Floats, want: Want, peak: float) -> Ints:
    """Columns of the candidates."""
    if want.top == 1:  # the most probable token is above any floor that anything is above
        best = np.array([np.argmax(row)])
        return best if want.floor <= 0 else best[_above_floor(row, want, peak)[best]]
    if want.floor > 0:
        ids = np.flatnonzero(_above_floor(row, want, peak))
    elif want.top == 0 or want.top >= len(row):
        return np.arange(len(row)) if want.top == 0 else _sorted(row, np.arange(len(row)))
    else:
        # Everything at the k-th largest logit or above: ties beyond k are cut by id below.
        threshold = np.partition(row, len(row) - want.top)[len(row) - want.top]
        ids = np.flatnonzero(row >= threshold)
    ids = _sorted(row, ids)
    return ids[: want.top] if want.top else ids


def _above_floor(row: Floats, want: Want, peak: float) -> npt.NDArray[np.bool_]:
    """Which columns have at least `floor` of the shard's mass at `temperature`."""
    if want.temperature <= 0:
        raise StepFailed(f"a floor needs a temperature above 0, got {want.temperature}")
    masses = np.exp((row - np.float32(peak)) / np.float32(want.temperature))
    above: npt.NDArray[np.bool_] = masses >= masses.sum() * want.floor * FLOOR_SLACK
    return above


def _sorted(row: Floats, ids: Ints) -> Ints:
    order: Ints = ids[np.lexsort((ids, -row[ids]))]
    return order
