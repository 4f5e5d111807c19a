"""A product, an activation and perhaps a norm: what stands before the heads of encoders."""

from __future__ import annotations

import torch

from skynet.architecture.architecture import Architecture
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


def load_dense(arch: Architecture, load: Loader, role: str, norm: str, activation: str) -> Dense:
    """The product `role` and what follows it."""
    after = load_norm(arch, load, norm, None, torch.float32)
    return Dense(load.linear(role), ACTIVATIONS[activation], after)
