"""Answers of text tasks, made from the outputs of all shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.architecture.architecture import Architecture
from skynet.errors import StepFailed
from skynet.request.task_names import EMBED, RERANK
from skynet.wire.step import Candidates, Part, TextTask

Vector = npt.NDArray[np.float32]
TextOutput = Vector | list[list[Candidates]]  # a pooled vector, or candidates for each mask


class ShardOutputs:
    """The outputs of all shards for a step's rows, taken row by row in their order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._num_candidates = self._num_vectors = 0

    def next_candidates(self) -> list[Candidates]:
        """Each shard's candidates for the next row with a logits request, or the next mask."""
        self._num_candidates += 1
        return [part.candidates[self._num_candidates - 1] for part in self._parts]

    def next_text_output(self, text_task: TextTask) -> TextOutput:
        """The output of the next row with a text task."""
        if not text_task.is_vector:
            return [self.next_candidates() for _ in text_task.positions]
        self._num_vectors += 1
        return self._parts[0].vectors[self._num_vectors - 1]


def predictions(candidates: Sequence[Candidates], count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens for a mask and their probabilities, best first.

    candidates: of each vocabulary shard.
    """
    ids = np.concatenate([part.ids for part in candidates])
    logits = np.concatenate([part.logits for part in candidates]).astype(np.float64)
    peak = max(part.peak for part in candidates)
    mass = sum(part.mass * float(np.exp(part.peak - peak)) for part in candidates)
    order = np.lexsort((ids, -logits))[:count]
    return [(int(ids[at]), float(np.exp(logits[at] - peak)) / mass) for at in order]


def scores(logits: Vector, kind: str) -> npt.NDArray[np.float64]:
    """A classifier's logits, (labels,), as scores: `softmax`, `sigmoid` or, for `none`, raw."""
    full = logits.astype(np.float64)
    if kind == "softmax":
        powers = np.exp(full - full.max())
        return np.asarray(powers / powers.sum())
    return 1 / (1 + np.exp(-full)) if kind == "sigmoid" else full


def yes_share(candidates: Sequence[Candidates], tokens: Sequence[int]) -> float:
    """The probability of the first of two tokens, where the text goes on with one of both.

    candidates: of each vocabulary shard.

    Raises:
        StepFailed: no shard has a logit of one of the tokens.
    """
    logits = {
        int(token): float(logit)
        for part in candidates
        for token, logit in zip(part.ids, part.logits, strict=True)
    }
    missing = [token for token in tokens if token not in logits]
    if missing or len(tokens) != 2:
        raise StepFailed(f"task rerank: no logits of the tokens {list(tokens)}")
    yes, no = (logits[token] for token in tokens)
    return float(pair_score(yes - no, "Sigmoid"))


def pair_score(logit: float, activation: str) -> float:
    """The score of a pair of texts; see `Architecture.pair_score`."""
    if activation == "Identity":
        return logit
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else 1 - 1 / (1 + math.exp(logit))


class TextAnswer:
    """Makes the answer of one request, as values for JSON."""

    def __init__(
        self, text_task: TextTask, arch: Architecture, spell: Callable[[int], str]
    ) -> None:
        """spell: the text of one token."""
        self.text_task = text_task
        self._arch, self._spell = arch, spell

    def answer(self, output: TextOutput) -> dict[str, Any]:
        """`embedding`, `predictions` of each mask, `labels` or `score`, as `skynet.Completion` has
        them.

        Raises:
            StepFailed: the output makes no answer.
        """
        task = self.text_task
        if isinstance(output, list) and task.task == RERANK:
            return {"score": yes_share(output[0], task.tokens)}
        if isinstance(output, list):
            best = [predictions(candidates, task.top) for candidates in output]
            return {"predictions": [[self._prediction(*item) for item in mask] for mask in best]}
        if task.task == EMBED:
            # The shortest decimals that give the same float32 again.
            return {"embedding": [float(str(number)) for number in output]}
        if task.task == RERANK:
            return {"score": pair_score(float(output[0]), self._arch.pair_score)}
        by_label = zip(self._arch.labels, scores(output, self._arch.label_score), strict=True)
        ordered = sorted(by_label, key=lambda item: -item[1])
        return {"labels": [{"label": name, "score": round(float(s), 8)} for name, s in ordered]}

    def _prediction(self, token: int, score: float) -> dict[str, Any]:
        return {"token_id": token, "token": self._spell(token), "score": round(score, 8)}
