"""Recurrent mixers as operations of a decoding step; see recurrent.c."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from skynet.kernels.steps import ACTIVATIONS, Float, Number, Places, Pointer, Program, address

MAX_HEAD_DIM = 4096  # numbers of a key or value: threads keep some of them on their stacks


class _States(ctypes.Structure):
    _fields_ = (("values", Pointer), ("places", Pointer), ("slots", Number), ("size", Number))


class _Convolution(ctypes.Structure):
    _fields_ = (
        ("windows", _States),
        *((name, Pointer) for name in ("weight", "bias")),
        *((name, Number) for name in ("channels", "kernel")),
    )


class _ShortConvolution(ctypes.Structure):
    _fields_ = (("convolution", _Convolution), ("source", Number), ("target", Number))


class _Delta(ctypes.Structure):
    _fields_ = (
        ("convolution", _Convolution),
        ("matrices", _States),
        *((name, Pointer) for name in ("beta", "decay", "rate", "time_bias", "norm_weight")),
        ("key_heads", Pointer),
        *((name, Number) for name in ("heads", "num_keys", "key_dim", "value_dim", "size")),
        *((name, Number) for name in ("activation", "input", "source", "target")),
        *((name, Float) for name in ("beta_scale", "length_eps", "norm_eps")),
    )


class _Mamba(ctypes.Structure):
    _fields_ = (
        ("convolution", _Convolution),
        ("matrices", _States),
        *((name, Pointer) for name in ("decay", "time_bias", "skip", "group_of", "in_prompt")),
        *((name, Number) for name in ("heads", "head_size", "groups", "state_size")),
        *((name, Number) for name in ("activation", "source", "target")),
        *((name, Float) for name in ("least", "most")),
    )


@dataclass(frozen=True)
class States:
    """One tensor of sequences' states.

    values: (2, slots, ...) float32.
    places: (slots, 2) int64: which of the two a step reads, -1 for zeros, and which it writes.
    """

    values: torch.Tensor
    places: torch.Tensor

    def argument(self) -> _States:
        slots = self.values.shape[1]
        size = self.values[0, 0].numel()
        return _States(self.values.data_ptr(), self.places.data_ptr(), slots, size)


@dataclass(frozen=True)
class Convolution:
    """A short convolution of channels. weight: (channels, kernel) float32; bias: (channels,)."""

    windows: States
    weight: torch.Tensor
    bias: torch.Tensor | None

    def argument(self) -> _Convolution:
        windows = self.windows.argument()
        weight, bias = self.weight.data_ptr(), address(self.bias)
        return _Convolution(windows, weight, bias, *self.weight.shape)


@dataclass(frozen=True)
class DeltaNet:
    """A gated delta net of `heads` value heads; all tensors but `key_heads` are float32.

    beta, decay: (heads, hidden). rate, time_bias: (heads,). norm: (value_dim,).
    key_heads: (heads,) int64: the key head that serves each value head.
    activation: of what is convolved.
    length_eps: beside the squares of a query's or key's length.
    """

    convolution: Convolution
    matrices: States  # (heads, key_dim, value_dim) of a sequence
    beta: torch.Tensor
    decay: torch.Tensor
    rate: torch.Tensor
    time_bias: torch.Tensor
    norm: torch.Tensor
    key_heads: torch.Tensor
    num_keys: int
    activation: str
    beta_scale: float
    length_eps: float
    norm_eps: float


def emit_convolution(program: Program, convolution: Convolution, places: Places) -> bool:
    """Add after * conv(before * input), of rows of all befores, all afters and all inputs."""
    arguments = _ShortConvolution(convolution.argument(), *places)
    channels = convolution.weight.shape[0]
    return program.append("convolution", arguments, places[1], channels, convolution)


def emit_delta(program: Program, net: DeltaNet, source: int, places: Places) -> bool:
    """Add convolution, delta rule, norm and gate, of rows of queries, keys, values and gates.

    source: what beta and decay depend on.
    """
    heads, key_dim, value_dim = net.matrices.values.shape[2:]
    if net.activation not in ACTIVATIONS or max(key_dim, value_dim) > MAX_HEAD_DIM:
        return False
    vectors = (net.beta, net.decay, net.rate, net.time_bias, net.norm, net.key_heads)
    arguments = _Delta(
        net.convolution.argument(),
        net.matrices.argument(),
        *(each.data_ptr() for each in vectors),
        *(heads, net.num_keys, key_dim, value_dim, net.beta.shape[1]),
        *(ACTIVATIONS[net.activation], source, *places),
        *(net.beta_scale, net.length_eps, net.norm_eps),
    )
    return program.append("delta", arguments, places[1], heads * value_dim, net)


@dataclass(frozen=True)
class MambaHeads:
    """Mamba-2 of some heads; vectors are (heads,), float32.

    group_of: (heads,) int64: the number of each head's B and C. groups: how many there are.
    in_prompt: (slots,) int64: whether time steps have the limits.
    activation: of what is convolved.
    """

    convolution: Convolution
    matrices: States  # (heads, head_size, state_size) of a sequence
    decay: torch.Tensor
    time_bias: torch.Tensor
    skip: torch.Tensor
    group_of: torch.Tensor
    groups: int
    in_prompt: torch.Tensor
    limits: tuple[float, float]
    activation: str


def emit_mamba(program: Program, of: MambaHeads, places: Places) -> bool:
    """Add convolution and recurrence, of rows of gates, values, B, C and time steps."""
    if of.activation not in ACTIVATIONS:
        return False
    heads, head_size, state_size = of.matrices.values.shape[2:]
    vectors = (of.decay, of.time_bias, of.skip, of.group_of, of.in_prompt)
    arguments = _Mamba(
        of.convolution.argument(),
        of.matrices.argument(),
        *(each.data_ptr() for each in vectors),
        *(heads, head_size, of.groups, state_size, ACTIVATIONS[of.activation], *places),
        *of.limits,
    )
    return program.append("mamba", arguments, places[1], heads * head_size, of)
