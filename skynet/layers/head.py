"""The last norm and the vocabulary head of one shard."""

from __future__ import annotations

import torch

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
        """projection: between norm and product; bias: (vocabulary of this shard,) float32.

        suppressed: which tokens have a bias of -inf; None: none.
        """
        parts = (norm, projection, product, bias)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)
        self.norm, self._projection, self._product = norm, projection, product
        self._scale, self._cap, self._bias = scale, cap, bias
        hidden = None if bias is None else bias == -torch.inf
        self.suppressed = hidden if hidden is not None and bool(hidden.any()) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, hidden) float32 to logits (rows, vocabulary of this shard) float32."""
        x = self.norm(x)
        if self._projection is not None:
            x = self._projection(x)
        logits = self._product(x.float())
        if self._bias is not None:
            logits = logits + self._bias
        if self._scale != 1:
            logits = logits * self._scale
        if self._cap is not None:
            logits = (logits / self._cap).tanh_().mul_(self._cap)
        return logits


def load_head(load: Loader) -> Head:
    """The vocabulary head of one shard of the last stage."""
    arch, norm = load.arch, load_norm(load, "final_norm")
    projection: Linear | Dense | None = None
    if load.has("head_dense"):
        projection = load_dense(load, "head_dense", "head_dense_norm", arch.head_activation)
    elif load.has("project_out"):
        projection = load.linear("project_out")
    # Logits are float32 whatever is computed in: rounded, likely tokens would tie.
    product = load.computing_in(torch.float32).linear("embed" if arch.tied else "head")
    bias = load.float32.vocab_vector("head_bias") if load.has("head_bias") else None
    return Head(norm, projection, product, arch.logit_scale, arch.logit_cap, bias)
