"""From the shards' candidates to one token: rules, then greedy or temperature, top-k, top-p, min-p.

The same seed gives the same token whatever the shape of the cluster: noise depends on the token
id, not on the order in which shards report.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from skynet.engine.processors import Rules
from skynet.request.record import Logprobs, Options
from skynet.wire.step import Candidates, LogitsRequest

MAX_VOCAB_SIZE = 2**20  # of any model


def logits_request_of(options: Options, rules: Rules | None = None) -> LogitsRequest:
    """The candidates that each vocabulary shard must return for an exact choice."""
    ids = () if rules is None else rules.ids
    mask = None if rules is None or rules.grammar is None else rules.grammar.mask
    if options.temperature == 0 or (rules is not None and rules.is_listed):
        return LogitsRequest(top=1, ids=ids, logprobs=options.logprobs, mask=mask)
    # See step.LogitsRequest. The bound on the vocabulary's size only adds candidates. Tokens that
    # top-p keeps are above its floor; tokens that min-p keeps are above the other one, since some
    # token has at least the mean share.
    floor = 0.0
    if not options.top_k:
        floor = max(0.0, 1 - options.top_p, options.min_p) / MAX_VOCAB_SIZE
    return LogitsRequest(options.top_k, floor, options.temperature, ids, options.logprobs, mask)


def sample(
    candidates: Sequence[Candidates], options: Options, index: int, rules: Rules | None = None
) -> int:
    """The next token id, from the candidates of all vocabulary shards.

    Order as in Hugging Face: rules, temperature, top-k, top-p, min-p. The draw is Gumbel-max
    (Maddison et al. 2014, https://arxiv.org/abs/1411.0030): argmax of logit / temperature plus
    noise, which samples from the softmax.

    index: number of the token in the answer; with `options.seed` it fixes the noise.

    Raises:
        ValueError: the rules leave no token.
    """
    ids = np.concatenate([part.ids for part in candidates])
    raw = np.concatenate([part.logits for part in candidates])
    if rules is not None:
        ids, raw = rules.apply(ids, raw)
        if not len(ids):
            raise ValueError("every token is forbidden by the request's options")
    logits = raw.astype(np.float64)
    order = np.lexsort((ids, -logits))
    if options.temperature == 0:
        return int(ids[order[0]])
    if options.top_k:
        order = order[: options.top_k]
    ids, scaled = ids[order], logits[order] / options.temperature
    if options.top_p < 1:
        weights = np.exp(scaled - scaled[0])
        if options.top_k or (rules is not None and rules.is_listed):
            total = float(weights.sum())
        else:
            total = _total_mass(candidates, options, scaled[0])
            if rules is not None:  # the shards' masses do not include tokens that rules may change
                total += float(weights[rules.touches(ids)].sum())
        before = np.concatenate(([0.0], np.cumsum(weights)[:-1])) / total
        keep = before < options.top_p
        ids, scaled = ids[keep], scaled[keep]
    if options.min_p > 0:
        keep = scaled >= scaled[0] + np.log(options.min_p)
        ids, scaled = ids[keep], scaled[keep]
    noise = gumbel_noise(options.seed or 0, index, ids)
    return int(ids[int(np.argmax(scaled + noise))])


def logprobs_of(candidates: Sequence[Candidates], token: int, count: int) -> Logprobs:
    """Log-softmax over the whole vocabulary, of the raw logits: for `token` and the `count` best.

    Raises:
        ValueError: the candidates lack log-probabilities, or the token.
    """
    best = [part.best for part in candidates if part.best is not None]
    chosen = [float(p.logits[p.ids == token][0]) for p in candidates if token in p.ids]
    if len(best) != len(candidates) or not chosen:
        raise ValueError(f"the shards returned no log-probability of token {token}")
    total = float(np.logaddexp.reduce([part.total for part in best]))
    ids = np.concatenate([part.ids for part in best])
    logits = np.concatenate([part.logits for part in best]).astype(np.float64)
    order = np.lexsort((ids, -logits))[:count]
    top = tuple((int(ids[at]), round(float(logits[at]) - total, 6)) for at in order)
    return Logprobs(round(chosen[0] - total, 6), top)


def _total_mass(candidates: Sequence[Candidates], options: Options, peak: float) -> float:
    """Softmax denominator over the whole vocabulary, relative to `peak` (scaled)."""
    return sum(
        part.mass * float(np.exp(part.peak / options.temperature - peak)) for part in candidates
    )


def gumbel_noise(seed: int, index: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for (seed, index, token id), (k,) float64.

    The uniform bits come from SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter, so
    that the noise of each id is independent of the other ids.
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
