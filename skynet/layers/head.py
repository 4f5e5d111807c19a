"""The last norm and the vocabulary head of one shard."""

from __future__ import annotations

import torch

from skynet.architecture.architecture import Architecture
from skynet.layers.dense import Dense, load_dense
from skynet.layers.linear import Linear
from skynet.layers.norm import Norm, load_norm
from skynet.layers.weights import Loader


class Head:
    """The last norm and the product with this shard's part of the vocabulary."""

    def __init__(
        self,
        norm: Norm,
        projection: Linear | Dense | None,
        product: Linear,
        scale: float = 1.0,
        cap: float | None = None,
        bias: torch.Tensor | None = None,
    ) -> None:
        """projection: what comes between; bias: float32, one number for each token."""
        parts = (norm, projection, product, bias)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)
        self.norm, self._projection, self._product = norm, projection, product
        self._scale, self._cap, self._bias = scale, cap, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, hidden) float32 to logits (rows, vocabulary of this shard) float32."""
        x = self.norm(x)
        if self._projection is not None:
            x = self._projection(x)
        logits = self._product(x).float()
        if self._bias is not None:
            logits = logits + self._bias
        if self._scale != 1:
            logits = logits * self._scale
        if self._cap is not None:
            logits = (logits / self._cap).tanh_().mul_(self._cap)
        return logits


def load_head(arch: Architecture, load: Loader, dtype: torch.dtype) -> Head:
    """The last stage's end of one shard."""
    norm = load_norm(arch, load, "final_norm", None, dtype)
    projection: Linear | Dense | None = None
    if load.has("head_dense"):
        projection = load_dense(arch, load, "head_dense", "head_dense_norm", arch.head_activation)
    elif load.has("project_out"):
        projection = load.linear("project_out")
    product = load.linear("embed" if arch.tied else "head")
    bias = load.vocab_vector("head_bias") if load.has("head_bias") else None
    return Head(norm, projection, product, arch.logit_scale, arch.logit_cap, bias)
