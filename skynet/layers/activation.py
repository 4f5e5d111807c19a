"""Activations by Transformers' names, and the gated product of an MLP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture
from skynet.architecture.gate import ClampedGate
from skynet.kernels.row_operations import activate

Activation = Callable[[torch.Tensor], torch.Tensor]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _relu_squared(x: torch.Tensor) -> torch.Tensor:
    """So et al., 2021, arXiv:2109.08668."""
    return F.relu(x).square_()


ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu_squared,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


def gated(activation: Activation, gate_up: torch.Tensor) -> torch.Tensor:
    """`gate_up` (tokens, 2 x columns), gate first, to act(gate) * up (tokens, columns)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)


def clamped_gate(form: ClampedGate, gate_up: torch.Tensor) -> torch.Tensor:
    """`gate_up` as in `gated`, combined as `ClampedGate` says."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=form.limit), up.clamp(-form.limit, form.limit)
    return (up + 1).mul_(gate).mul_(torch.sigmoid(gate * form.alpha))


def combination(arch: Architecture) -> Activation:
    """From an MLP's first products, (tokens, columns) or gate and up, to (tokens, columns)."""
    if arch.gate is not None:
        return partial(clamped_gate, arch.gate)
    activation = ACTIVATIONS[arch.activation]
    by_torch = partial(gated, activation) if arch.gated else activation

    def combine(x: torch.Tensor) -> torch.Tensor:
        y = activate(arch.activation, x, arch.gated)
        return by_torch(x) if y is None else y

    return combine
