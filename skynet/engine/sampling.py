"""From the shards' candidates to one token: greedy, temperature, top-k, top-p, seeded.

The same seed gives the same token whatever the shape of the cluster: noise belongs to a token id,
not to a place in a list, so the order in which shards report does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from skynet.step import Candidates, Want
from skynet.store.requests import Options


def want_of(options: Options) -> Want:
    """What each vocabulary shard must offer so that the choice among its offers is exact."""
    if options.temperature == 0:
        return Want(top=1)
    # See step.Want; the vocabulary's size is bounded from above, which only widens the offer.
    floor = 0.0 if options.top_p >= 1 or options.top_k else (1 - options.top_p) / 2**20
    return Want(top=options.top_k, floor=floor, temperature=options.temperature)


def sample(offers: Sequence[Candidates], options: Options, index: int) -> int:
    """The next token id, from the offers of all vocabulary shards.

    Order of the filters as in Hugging Face: temperature, top-k, top-p. The draw is Gumbel-max
    (Maddison et al. 2014, https://arxiv.org/abs/1411.0030): argmax of logit / temperature plus
    noise, which samples from the softmax.

    index: number of the token in the answer; with `options.seed` it fixes the noise.
    """
    ids = np.concatenate([offer.ids for offer in offers])
    logits = np.concatenate([offer.logits for offer in offers]).astype(np.float64)
    order = np.lexsort((ids, -logits))
    if options.temperature == 0:
        return int(ids[order[0]])
    if options.top_k:
        order = order[: options.top_k]
    ids, scaled = ids[order], logits[order] / options.temperature
    if options.top_p < 1:
        weights = np.exp(scaled - scaled[0])
        total = float(weights.sum()) if options.top_k else _total_mass(offers, options, scaled[0])
        before = np.concatenate(([0.0], np.cumsum(weights)[:-1])) / total
        keep = before < options.top_p
        ids, scaled = ids[keep], scaled[keep]
    noise = gumbel_noise(options.seed or 0, index, ids)
    return int(ids[int(np.argmax(scaled + noise))])


def _total_mass(offers: Sequence[Candidates], options: Options, peak: float) -> float:
    """Softmax denominator over the whole vocabulary, relative to `peak` (scaled)."""
    return sum(
        offer.mass * float(np.exp(offer.peak / options.temperature - peak)) for offer in offers
    )


def gumbel_noise(seed: int, index: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for (seed, index, token id), (k,) float64.

    The uniform bits come from SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter, so
    each id's noise can be made alone.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed & (2**64 - 1)) + _GAMMA)
        key = _mix(key + np.uint64(index) * _GAMMA)
        bits = _mix(key + ids.astype(np.uint64) * _GAMMA)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return np.asarray(-np.log(-np.log(uniform)), dtype=np.float64)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    mixed = np.atleast_1d(value)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
