"""From what shards read of a text to its answer: an embedding, predictions for masks, or labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.architecture.architecture import Architecture
from skynet.errors import StepFailed
from skynet.wire.step import Candidates, Part, TextTask

Vector = npt.NDArray[np.float32]


class ShardLogits:
    """What the shards return for a step's rows, taken row by row, in their order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._candidates = self._vectors = 0

    def token(self) -> list[Candidates]:
        """Candidates of each shard for the next row with a logits request, or the next mask."""
        self._candidates += 1
        return [part.candidates[self._candidates - 1] for part in self._parts]

    def reading(self, text_task: TextTask) -> Vector | list[list[Candidates]]:
        """Of the next row that is a whole text: its vector, or candidates for each mask."""
        if not text_task.is_vector:
            return [self.token() for _ in text_task.positions]
        self._vectors += 1
        return self._parts[0].vectors[self._vectors - 1]


def predictions(offers: Sequence[Candidates], count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens for a mask and their share of the whole softmax, best first."""
    ids = np.concatenate([offer.ids for offer in offers])
    logits = np.concatenate([offer.logits for offer in offers]).astype(np.float64)
    peak = max(offer.peak for offer in offers)
    mass = sum(offer.mass * float(np.exp(offer.peak - peak)) for offer in offers)
    order = np.lexsort((ids, -logits))[:count]
    return [(int(ids[at]), float(np.exp(logits[at] - peak)) / mass) for at in order]


def scores(logits: Vector, kind: str) -> npt.NDArray[np.float64]:
    """A classifier's logits, (labels,), as scores: `softmax`, `sigmoid`, or as they are."""
    full = logits.astype(np.float64)
    if kind == "softmax":
        powers = np.exp(full - full.max())
        return np.asarray(powers / powers.sum())
    return 1 / (1 + np.exp(-full)) if kind == "sigmoid" else full


class TextAnswer:
    """Makes one request's answer, which can be written as JSON."""

    def __init__(
        self, text_task: TextTask, arch: Architecture, spell: Callable[[int], str]
    ) -> None:
        """spell: the text of one token."""
        self.text_task = text_task
        self._arch, self._spell = arch, spell

    def answer(self, found: Vector | list[list[Candidates]]) -> dict[str, Any]:
        """`embedding`, `predictions` of each mask, or `labels`, as `skynet.Completion` has them.

        Raises:
            StepFailed: the model has overflowed.
        """
        if isinstance(found, list):
            best = [predictions(offers, self.text_task.top) for offers in found]
            return {"predictions": [[self._prediction(*item) for item in mask] for mask in best]}
        if not np.isfinite(found).all():
            raise StepFailed(f"{self.text_task.task}: the model computed infinities, not numbers")
        if self.text_task.task == "embed":
            # The shortest decimals that give the same float32 again.
            return {"embedding": [float(str(number)) for number in found]}
        by_label = zip(self._arch.labels, scores(found, self._arch.label_score), strict=True)
        ordered = sorted(by_label, key=lambda item: -item[1])
        return {"labels": [{"label": name, "score": round(float(s), 8)} for name, s in ordered]}

    def _prediction(self, token: int, score: float) -> dict[str, Any]:
        return {"token_id": token, "token": self._spell(token), "score": round(score, 8)}
