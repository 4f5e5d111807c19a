"""Pooling of whole texts after the last layer: embeddings and class logits.

All shards have the same hidden states there, so only the first one pools.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from skynet.errors import StepFailed
from skynet.layers.dense import Dense, load_dense
from skynet.layers.linear import Linear
from skynet.layers.norm import Norm
from skynet.layers.weights import Loader
from skynet.wire.step import Row, TextTask

Vector = npt.NDArray[np.float32]


def pool(x: torch.Tensor, pooling: str) -> torch.Tensor:
    """The hidden states of a text, (tokens, hidden) float32, to one vector, (hidden,).

    Raises:
        StepFailed: the pooling is unknown.
    """
    if pooling == "mean":
        return x.mean(dim=0)
    if pooling == "cls":
        return x[0]
    if pooling == "last":
        return x[-1]
    if pooling == "max":
        return x.amax(dim=0)
    raise StepFailed(f"pooling {pooling!r} is not supported")


class Pooler:
    """Computes embeddings, and class logits where the model has a classifier."""

    def __init__(
        self, norm: Norm, dense: Dense | None, out: Linear | None, pooling: str, dtype: torch.dtype
    ) -> None:
        """norm: of the last hidden states, not in `nbytes`; pooling: of the classifier."""
        self.nbytes = sum(part.nbytes for part in (dense, out) if part is not None)
        self._norm, self._dense, self._out = norm, dense, out
        self._pooling, self._dtype = pooling, dtype

    def __call__(self, rows: Sequence[Row], x: torch.Tensor) -> list[Vector]:
        """`x` (tokens, hidden) float32 to the vectors of the rows with a vector task, in order."""
        vectors, start = [], 0
        for row in rows:
            stop = start + len(row.tokens)
            if row.text_task is not None and row.text_task.is_vector:
                states = self._norm(x[start:stop]).float()
                vectors.append(self._pooled(row.text_task, states).cpu().numpy())
            start = stop
        return vectors

    def _pooled(self, text_task: TextTask, states: torch.Tensor) -> torch.Tensor:
        if text_task.task == "embed":
            vector = pool(states, text_task.pooling)
            return F.normalize(vector, dim=0) if text_task.normalize else vector
        if self._dense is None or self._out is None:
            raise StepFailed(f"task {text_task.task!r}: this model has no head for it")
        pooled = pool(states, self._pooling).to(self._dtype)[None]
        return self._out(self._dense(pooled))[0].float()


def load_pooler(load: Loader, norm: Norm) -> Pooler:
    """The pooler of the last stage; `norm` is of the last hidden states."""
    arch = load.arch
    dense = out = None
    if load.has("label_out"):
        dense = load_dense(load, "label_dense", "label_norm", arch.label_activation)
        out = load.linear("label_out")
    return Pooler(norm, dense, out, arch.label_pooling, load.dtype)
