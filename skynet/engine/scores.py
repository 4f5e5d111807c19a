"""Log-probabilities of a prompt's tokens, from the scores of all vocabulary shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skynet.request.record import Logprobs
from skynet.wire.step import Candidates


def prompt_logprobs_of(candidates: Sequence[Candidates], count: int) -> list[Logprobs]:
    """Log-softmax over the whole vocabulary at each position: of its target and the `count` best.

    Raises:
        ValueError: a shard returned no scores, or none of them has a target.
    """
    scores = [part.scores for part in candidates if part.scores is not None]
    if len(scores) != len(candidates):
        raise ValueError("a shard returned no scores of the prompt")
    totals = np.logaddexp.reduce([part.totals for part in scores])  # (positions,)
    targets = np.max([part.targets for part in scores], axis=0)
    if not (np.isfinite(totals) & np.isfinite(targets)).all():
        raise ValueError("the shards returned no log-probability of a token of the prompt")
    ids = np.concatenate([part.ids for part in scores], axis=1)
    logits = np.concatenate([part.logits for part in scores], axis=1)
    order = np.lexsort((ids, -logits), axis=1)[:, :count]
    best = np.take_along_axis(ids, order, 1).tolist()
    # In float64 and rounded, so that a target has the same number among the likeliest.
    own = np.round(targets.astype(np.float64) - totals, 6).tolist()
    numbers = np.take_along_axis(logits, order, 1).astype(np.float64) - totals[:, None]
    rounded = np.round(numbers, 6).tolist()
    return [
        Logprobs(chosen, tuple(zip(likeliest, values, strict=True)))
        for chosen, likeliest, values in zip(own, best, rounded, strict=True)
    ]
