"""Log-probabilities of a prompt's own tokens: what a row asks for, and what a shard answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.errors import WireError

MAX_TOP = 1000


@dataclass(frozen=True)
class ScoresRequest:
    """The log-probabilities of tokens after positions of a row.

    targets: the tokens that follow the row's positions from `first` on, one for each. The last one
        may be the first token of the next chunk.
    top: also of this many likeliest tokens at each position.
    """

    first: int
    targets: tuple[int, ...]
    top: int = 0

    def pack(self) -> list[Any]:
        return [self.first, np.asarray(self.targets, dtype=np.int32), self.top]

    @classmethod
    def unpack(cls, data: list[Any], num_tokens: int) -> ScoresRequest:
        """Of a row of `num_tokens` tokens."""
        first, targets, top = data
        listed = _array(targets, np.int32, 1)
        if type(first) is not int or not 0 <= first <= num_tokens - len(listed):
            raise WireError(f"scores of {len(listed)} positions from {first!r:.40} of {num_tokens}")
        if not len(listed) or listed.min() < 0:
            raise WireError("scores of no tokens")
        if type(top) is not int or not 0 <= top <= MAX_TOP:
            raise WireError(f"scores of {top!r:.40} likeliest tokens, at most {MAX_TOP}")
        return cls(first, tuple(listed.tolist()), top)


@dataclass(frozen=True)
class Scores:
    """One vocabulary shard's answer to a `ScoresRequest`, a line for each position.

    totals: (positions,) log of the sum of exp(logit) over the shard; -inf without vocabulary.
    targets: (positions,) the target's logit; -inf if another shard has that token.
    ids, logits: (positions, k) the likeliest tokens of the shard, best first.
    """

    totals: npt.NDArray[np.float64]
    targets: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]

    def pack(self) -> list[Any]:
        return [self.totals, self.targets, self.ids, self.logits]

    @classmethod
    def unpack(cls, data: list[Any]) -> Scores:
        totals, targets, ids, logits = data
        scores = cls(
            _array(totals, np.float64, 1),
            _array(targets, np.float32, 1),
            _array(ids, np.int32, 2),
            _array(logits, np.float32, 2),
        )
        count = len(scores.totals)
        if len(scores.targets) != count or len(scores.ids) != count:
            raise WireError(
                f"scores of {count}, {len(scores.targets)} and {len(scores.ids)} tokens"
            )
        if scores.ids.shape != scores.logits.shape or (scores.ids.size and scores.ids.min() < 0):
            raise WireError(f"{scores.ids.shape} likeliest tokens, {scores.logits.shape} logits")
        return scores


def _array(value: Any, dtype: type[np.generic], ndim: int) -> npt.NDArray[Any]:
    if not isinstance(value, np.ndarray) or value.ndim != ndim or value.dtype != dtype:
        raise WireError(f"{value!r:.40} is not an array of {dtype.__name__}")
    return value
