"""Pooling of whole texts after the last layer: embeddings and class logits.

All shards have the same hidden states there, so only the first one pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from skynet.errors import StepFailed
from skynet.layers.activation import ACTIVATIONS
from skynet.layers.dense import Dense, load_dense
from skynet.layers.linear import Linear
from skynet.layers.norm import Norm
from skynet.layers.weights import Loader
from skynet.wire.step import Row, TextTask

Vector = npt.NDArray[np.float32]


def pool(x: torch.Tensor, pooling: str, skip: int = 0) -> torch.Tensor:
    """The hidden states of a text, (tokens, hidden) float32, to one vector.

    As module Pooling of sentence-transformers; several poolings, joined by "+", are joined too.

    pooling: `mean`; `sqrt`, the sum over the square root of the number of tokens; `weighted`, the
        mean by the tokens' numbers from 1; `max`; `cls`, the first token; `last`.
    skip: leading tokens that count for none of the means and not for `max`.

    Raises:
        StepFailed: the pooling is unknown.
    """
    first, *others = pooling.split("+")
    if others:
        return torch.cat([pool(x, each, skip) for each in (first, *others)])
    if first == "cls":
        return x[0]
    if first == "last":
        return x[-1]
    numbers = torch.arange(skip + 1, len(x) + 1, dtype=x.dtype, device=x.device)
    x = x[skip:]
    if first == "mean":
        return x.mean(dim=0)
    if first == "max":
        return x.amax(dim=0)
    if first == "sqrt":
        return x.sum(dim=0) / len(x) ** 0.5
    if first == "weighted":
        return (x * numbers[:, None]).sum(dim=0) / numbers.sum()
    raise StepFailed(f"pooling {first!r} is not supported")


class Product:
    """A product in float32 after an embedding's pooling, and its activation."""

    def __init__(self, load: Loader, role: str, activation: str) -> None:
        self._matrix = load.float32.matrix(role)
        self._bias = load.float32.vector(role, "bias") if load.has_bias(role) else None
        self._activation = ACTIVATIONS[activation]
        self.nbytes = sum(part.nbytes for part in (self._matrix, self._bias) if part is not None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(in,) to (out,)."""
        if x.numel() != self._matrix.shape[1]:
            raise StepFailed(
                f"a pooled vector of {x.numel()} numbers, the model's Dense takes "
                f"{self._matrix.shape[1]}"
            )
        return self._activation(F.linear(x, self._matrix, self._bias))


@dataclass(frozen=True)
class Classifier:
    """The layers between a pooled vector and class logits.

    padding: a token that is never the text's last one.
    """

    dense: Dense | None
    out: Linear
    pooling: str
    dtype: torch.dtype
    padding: int | None = None

    @property
    def nbytes(self) -> int:
        return self.out.nbytes + (0 if self.dense is None else self.dense.nbytes)

    def __call__(self, states: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """The hidden states of a text, (tokens, hidden), to (labels,), all float32."""
        if self.padding is not None:
            places = [place for place, token in enumerate(tokens) if token != self.padding]
            states = states[: places[-1] + 1 if places else 1]
        pooled = pool(states, self.pooling).to(self.dtype)[None]
        return self.out(pooled if self.dense is None else self.dense(pooled))[0].float()


class Pooler:
    """Computes embeddings, and class logits where the model has a classifier."""

    def __init__(
        self, norm: Norm, classifier: Classifier | None = None, products: Sequence[Product] = ()
    ) -> None:
        """norm: of the last hidden states, not in `nbytes`; products: of embeddings."""
        self.nbytes = sum(product.nbytes for product in products)
        self.nbytes += 0 if classifier is None else classifier.nbytes
        self._norm, self._classifier, self._products = norm, classifier, products

    def __call__(self, rows: Sequence[Row], x: torch.Tensor) -> list[Vector]:
        """`x` (tokens, hidden) float32 to the vectors of the rows with a vector task, in order."""
        vectors, start = [], 0
        for row in rows:
            stop = start + len(row.tokens)
            if row.text_task is not None and row.text_task.is_vector:
                states = self._norm(x[start:stop]).float()
                vectors.append(self._pooled(row.text_task, states, row.tokens).cpu().numpy())
            start = stop
        return vectors

    def _pooled(
        self, text_task: TextTask, states: torch.Tensor, tokens: Sequence[int]
    ) -> torch.Tensor:
        if text_task.task == "embed":
            vector = pool(states, text_task.pooling, text_task.skip)
            for product in self._products:
                vector = product(vector)
            return F.normalize(vector, dim=0) if text_task.normalize else vector
        if self._classifier is None:
            raise StepFailed(f"task {text_task.task!r}: this model has no head for it")
        return self._classifier(states, tokens)


def load_pooler(load: Loader, norm: Norm) -> Pooler:
    """The pooler of the last stage; `norm` is of the last hidden states."""
    arch = load.arch
    classifier = None
    if load.has("label_out"):
        dense = None
        if load.has("label_dense"):
            dense = load_dense(load, "label_dense", "label_norm", arch.label_activation)
        out = load.linear("label_out")
        classifier = Classifier(dense, out, arch.label_pooling, load.dtype, arch.label_padding)
    products = [
        Product(load, role, activation)
        for role, activation in zip(arch.dense_roles, arch.dense, strict=True)
    ]
    return Pooler(norm, classifier, products)
