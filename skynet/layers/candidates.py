"""Picks from one shard's logits what a row may need for its next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from skynet.errors import StepFailed
from skynet.step import Candidates, Want

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Shares are compared with a floor in float32: nothing at the floor itself may be lost to rounding.
FLOOR_SLACK = 1 - 1e-4


def pick(logits: torch.Tensor, wants: Sequence[Want], first_id: int) -> list[Candidates]:
    """`logits` (rows, vocabulary of this shard) float32; `first_id` is the token of column 0.

    A row's candidates are sorted by falling logit, then rising id; without any limit, by id.
    """
    if logits.shape[1] == 0:
        nothing = Candidates(np.empty(0, np.int32), np.empty(0, np.float32), float("-inf"), 0.0)
        return [nothing for _ in wants]
    peaks = logits.amax(dim=1, keepdim=True)
    # As sampling will scale them: greedy rows, which look at no mass, have a temperature of 1.
    temperatures = torch.tensor([[want.temperature] for want in wants], device=logits.device)
    masses = ((logits - peaks) / temperatures).exp_().sum(dim=1).tolist()
    rows, tops = logits.cpu().numpy(), peaks[:, 0].tolist()
    picked = []
    for row, want, peak, mass in zip(rows, wants, tops, masses, strict=True):
        ids = _chosen(row, want, peak)
        picked.append(Candidates((ids + first_id).astype(np.int32), row[ids], peak, mass))
    return picked


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
