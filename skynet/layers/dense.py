"""A product, an activation and an optional norm: the dense layer before an encoder's heads."""

from __future__ import annotations

import torch

from skynet.layers.activation import ACTIVATIONS, Activation
from skynet.layers.linear import Linear
from skynet.layers.norm import Norm, load_norm
from skynet.layers.weights import Loader


class Dense:
    """Whole on every shard: it is small, and its norm needs all of it."""

    def __init__(self, product: Linear, activation: Activation, norm: Norm) -> None:
        self.nbytes = product.nbytes + norm.nbytes
        self._product, self._activation, self._norm = product, activation, norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, in) to (rows, out), both in the dtype of the products."""
        return self._norm(self._activation(self._product(x)).float()).to(x.dtype)


def load_dense(load: Loader, role: str, norm_role: str, activation: str) -> Dense:
    """The product `role`, its activation and its norm."""
    norm = load_norm(load, norm_role, dtype=torch.float32)
    return Dense(load.linear(role), ACTIVATIONS[activation], norm)
