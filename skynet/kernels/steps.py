"""A block of a layer as a list of operations, which one call runs for a decoding step; see steps.c.

Operations read and write numbered buffers, which the layers of a stack share.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skynet.architecture.gate import ClampedGate
from skynet.errors import StepFailed
from skynet.kernels.library import Library
from skynet.wire.step import Row

# Buffers: the input and output of a block, and what is between.
INPUT, OUTPUT, NORMED, WIDE, MIXED, OTHER = range(6)
ROUTED, EXPERT_INPUT, EXPERT_OUTPUT, LATENT, LATENT_OUTPUT = range(6, 11)  # see experts.py
SQUARES = 11  # see divided_norm.py
BUFFERS = 12
NONE = -1  # no buffer
NORMS = ("rms", "layer")
NUMBERS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # of weights; see products.c
ACTIVATIONS = {
    "silu": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "tanh": 4,
    "relu2": 5,
}
CLAMPED = 6
Pointer, Number, Float = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class _Step(ctypes.Structure):
    _fields_ = (
        ("rows", Number),
        ("threads", Number),
        ("slots", Pointer),
        ("positions", Pointer),
        ("encoder_slots", Pointer),
        ("encoder_lengths", Pointer),
        ("ropes", Pointer),
        ("buffers", Pointer),
    )


class _Call(ctypes.Structure):
    _fields_ = (("run", Pointer), ("arguments", Pointer))


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", Pointer),
        ("bias", Pointer),
        *((name, Number) for name in ("size", "stride", "kind", "source", "target")),
        ("eps", Float),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        ("weights", Pointer),
        ("bias", Pointer),
        *((name, Number) for name in ("inputs", "outputs", "source", "target")),
        *((name, Number) for name in ("first", "columns", "group", "is_q4", "scale_bytes")),
        ("number", Number),
    )


class _Activation(ctypes.Structure):
    _fields_ = (
        *((name, Number) for name in ("kind", "columns", "gated", "source", "target")),
        *((name, Float) for name in ("limit", "alpha")),
    )


class _Scale(ctypes.Structure):
    _fields_ = (
        *((name, Number) for name in ("first", "size", "columns", "target")),
        ("factor", Float),
    )


class _Add(ctypes.Structure):
    _fields_ = (
        ("bias", Pointer),
        *((name, Number) for name in ("size", "source", "target")),
        ("scale", Float),
    )


@dataclass(frozen=True)
class NormWeights:
    """What a norm computes with; of heads, a row of `weight` and `bias` for each."""

    kind: str  # of NORMS
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float


@dataclass(frozen=True)
class Factors:
    """What a product multiplies with: numbers, packed as in products.c, or quantised weights.

    shape: (out, in).
    sizes: of quantised weights (group, 1 if q4, bytes of a scale); see quantised.c.
    number: of others: which kind of number, one of `NUMBERS`.
    operation: the name of the product's.
    """

    weights: torch.Tensor
    bias: torch.Tensor
    shape: tuple[int, int]
    sizes: tuple[int, int, int] | None = None
    number: int = 0
    operation: str = "product"


class DecodingStep:
    """The rows of a step that has one token of each of several slots."""

    def __init__(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        ropes: Sequence[torch.Tensor],
        buffers: Sequence[torch.Tensor | None],
        encoder: EncoderRows | None = None,
    ) -> None:
        """slots, positions: (rows,) int64; ropes: (rows, 1, dims / 2) complex64."""
        self._kept = (slots, positions, *ropes, *buffers, encoder)
        self._ropes = (Pointer * max(1, len(ropes)))(*(rope.data_ptr() for rope in ropes))
        self._buffers = (Pointer * len(buffers))(
            *(None if buffer is None else buffer.data_ptr() for buffer in buffers)
        )
        self._step = _Step(
            len(slots),
            torch.get_num_threads(),
            slots.data_ptr(),
            positions.data_ptr(),
            *((None, None) if encoder is None else (each.data_ptr() for each in encoder)),
            ctypes.addressof(self._ropes),
            ctypes.addressof(self._buffers),
        )
        self.address = ctypes.addressof(self._step)
        self._rows, self._tensors = len(slots), buffers

    def rows_of(self, buffer: int, width: int) -> torch.Tensor:
        """The rows of a buffer, (rows, width)."""
        memory = self._tensors[buffer]
        if memory is None:
            raise StepFailed(f"buffer {buffer} of a step has no rows")
        return memory.view(-1)[: self._rows * width].view(self._rows, width)


class StepKernels:
    """Makes the programs of a stack's layers, and holds what they share: buffers, and the bias of
    scores, (heads, slot_tokens) float32 by the distance from query to key."""

    def __init__(self, library: Library, bias: torch.Tensor | None = None) -> None:
        self.library, self.bias = library, bias
        self.crosses = False  # whether a program attends to encoder KV
        self._widths = [0] * BUFFERS
        self._buffers: list[torch.Tensor | None] = []
        self._rows = 0

    def program(self) -> Program:
        return Program(self)

    def need(self, buffer: int, width: int) -> None:
        """Make rows of `buffer` at least `width` floats wide."""
        self._widths[buffer] = max(self._widths[buffer], width)

    def step(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        ropes: Sequence[torch.Tensor],
        encoder: EncoderRows | None = None,
    ) -> DecodingStep:
        """See `DecodingStep`. encoder: needed if a program attends to encoder KV."""
        if len(slots) > self._rows:
            self._rows = len(slots)
            self._buffers = [
                torch.empty(self._rows, width) if width else None for width in self._widths
            ]
        return DecodingStep(slots, positions, ropes, self._buffers, encoder)


def one_shard(partial: torch.Tensor) -> torch.Tensor:
    """The sum over the shards, if there is one."""
    return partial


class Program:
    """A list of operations. Methods that add one return False where it is not supported."""

    def __init__(self, kernels: StepKernels) -> None:
        self._kernels, self._library = kernels, kernels.library
        self._operations: list[tuple[str, ctypes.Structure]] = []
        self._prepares: list[Prepare] = []
        self._sums: list[tuple[int, int, int]] = []  # before which operation; buffer and width
        self._kept: list[Any] = []  # what the arguments point to
        self._calls: ctypes.Array[_Call] | None = None
        self._address = self._count = 0

    def __call__(
        self, x: torch.Tensor, step: DecodingStep, all_reduce: AllReduce = one_shard
    ) -> torch.Tensor:
        """`x` (rows, hidden) float32 to a new tensor of the same shape."""
        x = x.float().contiguous()  # the kernels would read and write past narrower numbers
        y, (address, count), first = torch.empty_like(x), self.calls(), 0
        for last, buffer, width in (*self._sums, (count, None, 0)):
            start = address + first * ctypes.sizeof(_Call)
            self._library.run(start, last - first, step.address, x.data_ptr(), y.data_ptr())
            if buffer is not None:
                partial = step.rows_of(buffer, width)
                partial.copy_(all_reduce(partial.clone()))
            first = last
        return y

    def sum(self, buffer: int, width: int) -> bool:
        """Replace rows of `width` of `buffer` by their sums over all shards."""
        self._sums.append((len(self._operations), buffer, width))
        return True

    @property
    def is_one_call(self) -> bool:
        """Whether it makes no sums."""
        return not self._sums

    def before(self, prepare: Prepare) -> None:
        """Call `prepare` with the rows of each step that the program will run."""
        self._prepares.append(prepare)

    def prepare(self, rows: Sequence[Row]) -> None:
        """See `before`."""
        for prepare in self._prepares:
            prepare(rows)

    def norm(self, norm: NormWeights, source: int, target: int, stride: int | None = None) -> bool:
        """stride: the width of the source's rows, if only their first numbers are normed."""
        if norm.weight.ndim > 1:
            return False
        size = norm.weight.shape[-1]
        bias = None if norm.bias is None else norm.bias.data_ptr()
        kind = NORMS.index(norm.kind)
        self._kept.append(norm)
        sizes = size, stride or size, kind
        arguments = _Norm(norm.weight.data_ptr(), bias, *sizes, source, target, norm.eps)
        return self.append("norm", arguments, target, size)

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
            factors.number,
        )
        return self.append(factors.operation, arguments, target, width)

    def activation(
        self,
        name: str,
        columns: int,
        gated: bool,
        places: Places,
        clamped: ClampedGate | None = None,
    ) -> bool:
        """gated: gate and up are side by side; clamped: how they are combined instead."""
        if not columns or (clamped is None and name not in ACTIVATIONS):
            return False
        source, target = places
        kind = ACTIVATIONS[name] if clamped is None else CLAMPED
        arguments = _Activation(kind, columns, gated, source, target)
        if clamped is not None:
            arguments.limit, arguments.alpha = clamped.limit, clamped.alpha
        return self.append("activation", arguments, target, columns)

    def scale(self, factor: float, size: int, target: int, columns: Columns) -> bool:
        """Multiply `size` columns of the target. columns: their first, and how many there are."""
        first, width = columns
        return self.append("scale", _Scale(first, size, width, target, factor), target, width)

    def add(
        self, size: int, places: Places, scale: float = 1.0, bias: torch.Tensor | None = None
    ) -> bool:
        """Add rows of `size`, and a bias, times `scale` to those of the target.

        places: the source may be NONE.
        """
        source, target = places
        address = None if bias is None else bias.data_ptr()
        return self.append("add", _Add(address, size, source, target, scale), target, size, bias)

    def append(
        self, name: str, arguments: ctypes.Structure, target: int, width: int, *kept: Any
    ) -> bool:
        """Add an operation of library.py that writes rows of `width` floats to `target`.

        kept: what the arguments point to.
        """
        if target not in (INPUT, OUTPUT):
            self._kernels.need(target, width)
        self._operations.append((name, arguments))
        self._kept += kept
        return True

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of scores; see `StepKernels`."""
        return self._kernels.bias

    def cross(self) -> None:
        """The program attends to encoder KV."""
        self._kernels.crosses = True

    def need(self, buffer: int, width: int) -> None:
        """See `StepKernels.need`."""
        self._kernels.need(buffer, width)

    def part(self) -> Program:
        """An empty program that an operation of this one runs."""
        return self._kernels.program()

    def calls(self) -> tuple[int, int]:
        """The address of the list, and how many operations it has; it is complete from now on."""
        if self._calls is None:
            self._finish()
        return self._address, self._count

    def _finish(self) -> None:
        addresses = self._library.operations
        self._calls = (_Call * len(self._operations))(
            *(_Call(addresses[name], ctypes.addressof(each)) for name, each in self._operations)
        )
        self._address, self._count = ctypes.addressof(self._calls), len(self._operations)


EncoderRows = tuple[torch.Tensor, torch.Tensor]  # (rows,) int64 each: slots of encoder KV, tokens
AllReduce = Callable[[torch.Tensor], torch.Tensor]
Prepare = Callable[[Sequence[Row]], None]
Places = tuple[int, int]  # the buffers that an operation reads and writes
Columns = tuple[int, int]  # the first column that a product fills, and how many its target has


def address(tensor: torch.Tensor | None) -> int | None:
    """Where the numbers of a tensor begin; None without one."""
    return None if tensor is None else tensor.data_ptr()
