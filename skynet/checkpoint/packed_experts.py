"""One tensor for each expert, of a file that has one for all of them: views, read by region.

Staging, quantisation and plans see experts that are stored one by one, whatever the file has, and
no more than a region of one expert is read at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.packed import Packed
from skynet.architecture.stored import matrix_shape
from skynet.architecture.tensors import with_prefix
from skynet.checkpoint.formats.matrix import Matrix, reordered_rows
from skynet.checkpoint.safetensors_file import TensorInfo, read_part
from skynet.errors import CheckpointError
from skynet.wire.quantised import Quantised


@dataclass(frozen=True)
class ExpertView:
    """One expert's matrix (out, in), or its bias (out,), in a tensor of numbers.

    shape: of the view.
    info: of the tensor, in three axes (two for biases).
    """

    name: str
    shape: tuple[int, ...]
    expert: int
    packed: Packed
    info: TensorInfo

    def read(self, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        """See `Checkpoint.read`."""
        if not 0 <= axis < len(self.shape) or not 0 <= start <= stop <= self.shape[axis]:
            raise CheckpointError(
                f"{self.name} has shape {list(self.shape)}: there is no [{start}, {stop}) along "
                f"axis {axis}"
            )
        region = [slice(0, size) for size in self.shape]
        region[axis] = slice(start, stop)
        region[0] = self.packed.outputs(region[0].start, region[0].stop, self.shape[0])
        inner = region[::-1] if self.packed.transposed else region
        index: tuple[Any, ...] = (self.expert, *inner)

        def part(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
            found = tensor[index]
            return found.T if self.packed.transposed else found

        return read_part(self.name, self.info, part)


@dataclass(frozen=True)
class PackedExperts:
    """The experts of a checkpoint that are not stored one by one.

    numbers, quantised: the views, by the names that experts' tensors have in files with experts
        one by one.
    stored: the names of the packed tensors: Transformers' and the file's.
    axes: of a quantised tensor, by its name in the file: how many experts, and whether a tensor of
        numbers is transposed.
    """

    numbers: dict[str, ExpertView] = field(default_factory=dict)
    quantised: dict[str, Matrix] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    axes: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        """Whether the tensor is a view of one expert."""
        return name in self.numbers or name in self.quantised

    def infos(self) -> dict[str, TensorInfo]:
        """The shapes and dtypes of the views of numbers."""
        return {
            name: replace(view.info, shape=view.shape, offset=0, num_bytes=0)
            for name, view in self.numbers.items()
        }

    def in_axes_of_numbers(self, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """All experts' outputs of a quantised tensor, in the axes that Transformers has; other
        tensors as they are.
        """
        if name not in self.axes:
            return array
        experts, is_transposed = self.axes[name]
        stacked = array.reshape(experts, -1, array.shape[-1])
        return np.ascontiguousarray(stacked.swapaxes(1, 2)) if is_transposed else stacked


def packed_experts(
    arch: Architecture, tensors: Mapping[str, TensorInfo], quantised: Mapping[str, Matrix]
) -> PackedExperts:
    """The views of all experts of `arch` that the file has packed.

    quantised: the quantised tensors, each a matrix of all experts' outputs end to end.

    Raises:
        CheckpointError: a packed tensor does not fit the config.
    """
    made = PackedExperts()
    for prefix in arch.prefixes:
        for layer, kind, weight, packed in _packed_weights(arch):
            names = _Names(arch, prefix, layer, weight, kind.num_experts)
            shape = matrix_shape(kind, weight)
            stored = names.stored(packed.tensor)
            if stored in quantised:
                made.stored[packed.tensor.format(layer=layer)] = stored
                made.axes[stored] = (kind.num_experts, packed.transposed)
                _add_matrices(made, names, packed, shape, quantised[stored])
            elif stored in tensors:
                made.stored[packed.tensor.format(layer=layer)] = stored
                _add_numbers(made, names.pieces("weight"), packed, shape, (stored, tensors[stored]))
            stored = names.stored(packed.bias)
            if weight.bias and stored in tensors:
                made.stored[packed.bias.format(layer=layer)] = stored
                vector = replace(packed, transposed=False)
                biases = names.pieces("bias")
                _add_numbers(made, biases, vector, shape[:1], (stored, tensors[stored]))
    return made


def _packed_weights(arch: Architecture) -> Iterator[tuple[int, Architecture, Weight, Packed]]:
    for layer in range(arch.num_layers):
        kind = arch.at(layer)
        for weight in kind.weights:
            if weight.packed is not None and weight.is_in(layer):
                yield layer, kind, weight, weight.packed


@dataclass(frozen=True)
class _Names:
    """The names that the tensors of a layer's weight have in a file with this prefix."""

    arch: Architecture
    prefix: str
    layer: int
    weight: Weight
    experts: int

    def stored(self, name: str) -> str:
        return with_prefix(self.arch, name.format(layer=self.layer), self.prefix)

    def pieces(self, kind: str) -> list[str]:
        names = (self.weight.tensor(self.layer, kind, expert) for expert in range(self.experts))
        return [with_prefix(self.arch, name, self.prefix) for name in names]


def _add_numbers(
    made: PackedExperts,
    names: list[str],
    packed: Packed,
    shape: tuple[int, ...],
    source: tuple[str, TensorInfo],
) -> None:
    """Views of `shape`, by these names, of a tensor: its name and its entry."""
    name, info = source
    one = (packed.parts * shape[0], *shape[1:])
    one = one[::-1] if packed.transposed else one
    merged = (len(names) * one[0], *one[1:])  # experts and their rows in one axis
    _check(name, info.shape, (len(names), *one), merged if len(one) > 1 else None)
    info = replace(info, shape=(len(names), *one))
    for expert, piece in enumerate(names):
        made.numbers[piece] = ExpertView(piece, shape, expert, packed, info)


def _add_matrices(
    made: PackedExperts, names: _Names, packed: Packed, shape: tuple[int, int], matrix: Matrix
) -> None:
    outputs = packed.parts * shape[0]
    _check(matrix.name, matrix.shape, (names.experts * outputs, shape[1]))
    for expert, piece in enumerate(names.pieces("weight")):
        rows = partial(_expert_rows, matrix, packed, shape[0], expert * outputs)
        made.quantised[piece] = replace(matrix, name=piece, shape=shape, rows=rows)


def _expert_rows(
    matrix: Matrix, packed: Packed, size: int, first: int, start: int, stop: int
) -> Quantised:
    """Outputs [start, stop) of one expert, whose part of `matrix` starts at row `first`."""
    rows = packed.outputs(start, stop, size)
    read = matrix.rows(first + rows.start, first + max(rows.start, rows.stop))
    if rows.step is None:
        return read
    return reordered_rows(read, np.arange(0, len(read.codes), rows.step))


def _check(name: str, shape: tuple[int, ...], *known: tuple[int, ...] | None) -> None:
    if shape not in known:
        raise CheckpointError(
            f"tensor {name} has shape {list(shape)}, the config says {list(known[0] or ())}: "
            "config.json and the weights do not belong together"
        )
