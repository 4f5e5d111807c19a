"""A block of a layer as a list of operations, which one call runs for a decoding step; see steps.c.

Operations read and write numbered buffers, which the layers of a stack share.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skynet.kernels.library import Library

# Buffers: the input and output of a block, and what is between.
INPUT, OUTPUT, NORMED, WIDE, MIXED, OTHER = range(6)
NORMS = ("rms", "layer")
KV_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
ACTIVATIONS = {
    "silu": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "tanh": 4,
    "relu2": 5,
}
MAX_HEAD_DIM = 512
Pointer, Number, Float = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class _Step(ctypes.Structure):
    _fields_ = (
        ("rows", Number),
        ("threads", Number),
        ("slots", Pointer),
        ("positions", Pointer),
        ("ropes", Pointer),
        ("buffers", Pointer),
    )


class _Call(ctypes.Structure):
    _fields_ = (("run", Pointer), ("arguments", Pointer))


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", Pointer),
        ("bias", Pointer),
        *((name, Number) for name in ("size", "kind", "source", "target")),
        ("eps", Float),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        ("weights", Pointer),
        ("bias", Pointer),
        *((name, Number) for name in ("inputs", "outputs", "source", "target")),
        *((name, Number) for name in ("first", "columns", "group", "is_q4", "scale_bytes")),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("cache", "scales", "norm_weight", "norm_bias")),
        *((name, Number) for name in ("kind", "heads", "kv_heads", "head_dim", "slot_tokens")),
        *((name, Number) for name in ("window", "rope", "rotary_dims")),
        *((name, Number) for name in ("norm_kind", "source", "target")),
        *((name, Float) for name in ("norm_eps", "scale", "cap")),
    )


class _Activation(ctypes.Structure):
    _fields_ = tuple((name, Number) for name in ("kind", "columns", "gated", "source", "target"))


class _Add(ctypes.Structure):
    _fields_ = tuple((name, Number) for name in ("size", "source", "target"))


@dataclass(frozen=True)
class NormWeights:
    """What a norm computes with; of heads, a row of `weight` and `bias` for each."""

    kind: str  # of NORMS
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float


@dataclass(frozen=True)
class HeadLayout:
    """Attention of one shard's heads, from queries, keys and values side by side.

    rope: the number of the model's rope; None: none.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    rope: int | None = None
    rotary_dims: int = 0
    cap: float | None = None
    norm: NormWeights | None = None


@dataclass(frozen=True)
class Factors:
    """What a product multiplies with: bfloat16 weights, packed as in products.c, or quantised ones.

    shape: (out, in).
    sizes: of quantised weights (group, 1 if q4, bytes of a scale); see quantised.c.
    operation: the name of the product's.
    """

    weights: torch.Tensor
    bias: torch.Tensor
    shape: tuple[int, int]
    sizes: tuple[int, int, int] | None = None
    operation: str = "product"


class DecodingStep:
    """The rows of a step that has one token of each of several slots."""

    def __init__(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        ropes: Sequence[torch.Tensor],
        buffers: Sequence[torch.Tensor | None],
    ) -> None:
        """slots, positions: (rows,) int64; ropes: (rows, 1, dims / 2) complex64."""
        self._kept = (slots, positions, *ropes, *buffers)
        self._ropes = (Pointer * max(1, len(ropes)))(*(rope.data_ptr() for rope in ropes))
        self._buffers = (Pointer * len(buffers))(
            *(None if buffer is None else buffer.data_ptr() for buffer in buffers)
        )
        self._step = _Step(
            len(slots),
            torch.get_num_threads(),
            slots.data_ptr(),
            positions.data_ptr(),
            ctypes.addressof(self._ropes),
            ctypes.addressof(self._buffers),
        )
        self.address = ctypes.addressof(self._step)


class StepKernels:
    """Makes the programs of a stack's layers, and holds the buffers that they share."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._widths = [0] * (OTHER + 1)
        self._buffers: list[torch.Tensor | None] = []
        self._rows = 0

    def program(self) -> Program:
        return Program(self)

    def need(self, buffer: int, width: int) -> None:
        """Make rows of `buffer` at least `width` floats wide."""
        self._widths[buffer] = max(self._widths[buffer], width)

    def step(
        self, slots: torch.Tensor, positions: torch.Tensor, ropes: Sequence[torch.Tensor]
    ) -> DecodingStep:
        """See `DecodingStep`."""
        if len(slots) > self._rows:
            self._rows = len(slots)
            self._buffers = [
                torch.empty(self._rows, width) if width else None for width in self._widths
            ]
        return DecodingStep(slots, positions, ropes, self._buffers)


class Program:
    """A list of operations. Methods that add one return False where it is not supported."""

    def __init__(self, kernels: StepKernels) -> None:
        self._kernels, self._library = kernels, kernels.library
        self._operations: list[tuple[str, ctypes.Structure]] = []
        self._kept: list[Any] = []  # what the arguments point to
        self._calls: ctypes.Array[_Call] | None = None
        self._address = self._count = 0

    def __call__(self, x: torch.Tensor, step: DecodingStep) -> torch.Tensor:
        """`x` (rows, hidden) float32 to a new tensor of the same shape."""
        if self._calls is None:
            self._finish()
        x = x.float().contiguous()  # the kernels would read and write past narrower numbers
        y = torch.empty_like(x)
        self._library.run(self._address, self._count, step.address, x.data_ptr(), y.data_ptr())
        return y

    def norm(self, norm: NormWeights, source: int, target: int) -> bool:
        if norm.weight.ndim > 1:
            return False
        size = norm.weight.shape[-1]
        bias = None if norm.bias is None else norm.bias.data_ptr()
        kind = NORMS.index(norm.kind)
        self._kept.append(norm)
        arguments = _Norm(norm.weight.data_ptr(), bias, size, kind, source, target, norm.eps)
        return self._add("norm", arguments, target, size)

    def product(self, factors: Factors, places: Places, columns: Columns | None = None) -> bool:
        """columns: of the target's that the product fills; all by default."""
        (outputs, inputs), (source, target) = factors.shape, places
        first, width = columns or (0, outputs)
        self._kept.append(factors)
        arguments = _Product(
            factors.weights.data_ptr(),
            factors.bias.data_ptr(),
            *(inputs, outputs, source, target),
            *(first, width),
            *(factors.sizes or (0, 0, 0)),
        )
        return self._add(factors.operation, arguments, target, width)

    def attention(
        self, layout: HeadLayout, cache: torch.Tensor, scales: torch.Tensor | None, places: Places
    ) -> bool:
        """Norm, rope, store and attention; queries, keys and values are side by side.

        cache: (slots, K and then V heads, tokens, head_dim); scales: the same but head_dim.
        """
        kind = KV_DTYPES.get(cache.dtype)
        if kind is None or layout.head_dim > MAX_HEAD_DIM or not layout.heads:
            return False
        self._kept += [layout, cache, scales]
        norm, (source, target) = layout.norm, places
        norm_weight = None if norm is None else norm.weight.data_ptr()
        norm_bias = None if norm is None or norm.bias is None else norm.bias.data_ptr()
        arguments = _Attention(
            cache.data_ptr(),
            None if scales is None else scales.data_ptr(),
            norm_weight,
            norm_bias,
            kind,
            layout.heads,
            layout.kv_heads,
            layout.head_dim,
            cache.shape[2],
            layout.window or 0,
            -1 if layout.rope is None else layout.rope,
            layout.rotary_dims,
            0 if norm is None else NORMS.index(norm.kind),
            source,
            target,
            0 if norm is None else norm.eps,
            layout.scale,
            layout.cap or 0,
        )
        return self._add("attention", arguments, target, layout.heads * layout.head_dim)

    def activation(self, name: str, columns: int, gated: bool, places: Places) -> bool:
        """gated: gate and up are side by side."""
        if name not in ACTIVATIONS or not columns:
            return False
        source, target = places
        arguments = _Activation(ACTIVATIONS[name], columns, gated, source, target)
        return self._add("activation", arguments, target, columns)

    def add(self, size: int, source: int, target: int) -> bool:
        """Add rows of `size` of `source` to those of `target`."""
        return self._add("add", _Add(size, source, target), target, size)

    def _add(self, name: str, arguments: ctypes.Structure, target: int, width: int) -> bool:
        if target not in (INPUT, OUTPUT):
            self._kernels.need(target, width)
        self._operations.append((name, arguments))
        return True

    def _finish(self) -> None:
        addresses = self._library.operations
        self._calls = (_Call * len(self._operations))(
            *(_Call(addresses[name], ctypes.addressof(each)) for name, each in self._operations)
        )
        self._address, self._count = ctypes.addressof(self._calls), len(self._operations)


Places = tuple[int, int]  # the buffers that an operation reads and writes
Columns = tuple[int, int]  # the first column that a product fills, and how many its target has
