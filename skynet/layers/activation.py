"""Activations by Transformers' names, and the gated product of an MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Activation = Callable[[torch.Tensor], torch.Tensor]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


def gated(activation: Activation, gate_up: torch.Tensor) -> torch.Tensor:
    """`gate_up` (tokens, 2 x columns), gate first, to act(gate) * up (tokens, columns)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)
