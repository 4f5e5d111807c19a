"""compressed-tensors: int4 and int8, fp8 and MXFP4, of vLLM's and LLM Compressor's checkpoints.

What a module has decides, not the config's targets: packed int32 words, int8 or fp8 numbers.
Activations are never quantised: what `input_activations` says is left out, as it makes answers
less exact, and faster only on devices with such products.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.formats import fp8, mxfp4
from skynet.checkpoint.formats.matrix import Matrix, ScaleDtype, rounded, signed, with_zero_points
from skynet.checkpoint.formats.parts import (
    FLOATS,
    Parts,
    Settings,
    Tensors,
    modules,
    require,
    unpacked,
)
from skynet.errors import CheckpointError
from skynet.wire.quantised import Layout, Quantised

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
)


def matrices(settings: Settings, tensors: Tensors) -> dict[str, Matrix]:
    """The quantised matrices of a checkpoint, by name.

    Raises:
        UnsupportedModel: a setting that is not supported.
        CheckpointError: tensors that do not belong together.
    """
    require(settings, "format", *FORMATS)
    for field in ("sparsity_config", "transform_config"):
        require({field: settings.get(field) or None}, field, None)
    packed = {parts.name: _packed(parts) for parts in modules(tensors, "weight_packed")}
    return packed | {
        parts.name: _plain(parts)
        for parts in modules(tensors, "weight_scale")
        if parts.name not in packed
    }


def _plain(parts: Parts) -> Matrix:
    """A module whose numbers are not packed: int8 or fp8."""
    if parts.info("weight").dtype == fp8.DTYPE:
        return fp8.scaled(parts, "weight_scale")
    outputs, inputs = parts.size("weight", 0), parts.size("weight", 1)
    parts.check("weight", (outputs, inputs), "int8")
    return _Module(parts, outputs, inputs, bits=8, is_packed=False).matrix()


def _packed(parts: Parts) -> Matrix:
    """A module of packed numbers: int32 words of 4 or 8 bits, or MXFP4."""
    outputs = parts.size("weight_packed", 0)
    if parts.info("weight_packed").dtype == "uint8":
        inputs = parts.size("weight_packed", 1) * 2
        parts.check("weight_scale", (outputs, inputs // mxfp4.GROUP), "uint8")
        shape, rows = (outputs, inputs), partial(_mxfp4_rows, parts)
        return Matrix(parts.name, shape, "q8", mxfp4.GROUP, "float32", rows)
    parts.check("weight_shape", (2,), "int64", "int32")
    outputs, inputs = (int(size) for size in parts.read("weight_shape"))
    words = parts.size("weight_packed", 1)
    bits = next((bits for bits in (4, 8) if -(-inputs * bits // 32) == words), 4)
    parts.check("weight_packed", (outputs, -(-inputs * bits // 32)), "int32")
    return _Module(parts, outputs, inputs, bits=bits, is_packed=True).matrix()


def _mxfp4_rows(parts: Parts, start: int, stop: int) -> Quantised:
    packed = parts.read("weight_packed", 0, start, stop)
    return mxfp4.decode(packed, parts.read("weight_scale", 0, start, stop))


class _Module:
    def __init__(
        self, parts: Parts, outputs: int, inputs: int, *, bits: int, is_packed: bool
    ) -> None:
        self.parts, self.outputs, self.inputs = parts, outputs, inputs
        self.bits, self.is_packed = bits, is_packed
        self.groups = self._groups()
        self.group = inputs // self.groups
        self.has_zeros = parts.has("weight_zero_point")
        if self.has_zeros:
            rows = -(-outputs * bits // 32) if is_packed else outputs
            dtype = "int32" if is_packed else "int8"
            parts.check("weight_zero_point", (rows, self.groups), dtype)

    def matrix(self) -> Matrix:
        name, shape = self.parts.name, (self.outputs, self.inputs)
        if not self._in_order():
            return rounded(name, shape, "compressed-tensors with actorder", self._numbers)
        if self.bits == 8 and (self._zeros(0, self.outputs) != 128).any():
            return rounded(name, shape, "int8 with zero points", self._numbers)
        is_half = self.parts.info("weight_scale").dtype == "float16" and not self.has_zeros
        layout: Layout = "q4" if self.bits == 4 else "q8"
        dtype: ScaleDtype = "float16" if is_half else "float32"
        return Matrix(name, shape, layout, self.group, dtype, partial(self._rows, dtype))

    def _groups(self) -> int:
        """The scales of an output; one scale for the whole matrix counts as one of each output."""
        shape = self.parts.info("weight_scale").shape
        if shape in ((), (1,)):
            shape = (1, 1)
        if len(shape) != 2 or shape[0] not in (1, self.outputs) or self.inputs % max(1, shape[1]):
            self.parts.check("weight_scale", (self.outputs, 1), *FLOATS)
        self.parts.check("weight_scale", self.parts.info("weight_scale").shape, *FLOATS)
        return max(1, shape[1])

    def _in_order(self) -> bool:
        if not self.parts.has("weight_g_idx"):
            return True
        groups = self._group_of_input()
        return bool((groups < 0).all()) or np.array_equal(groups, self._consecutive())

    def _group_of_input(self) -> npt.NDArray[Any]:
        if not self.parts.has("weight_g_idx"):
            return self._consecutive()
        self.parts.check("weight_g_idx", (self.inputs,), "int32", "int64")
        groups: npt.NDArray[Any] = self.parts.read("weight_g_idx")
        if groups.size and groups.max() >= self.groups:
            raise CheckpointError(
                f"{self.parts.prefix}weight_g_idx names group {groups.max()} of {self.groups}; "
                "download the checkpoint again"
            )
        return groups

    def _consecutive(self) -> npt.NDArray[Any]:
        return np.arange(self.inputs) // self.group

    def _rows(self, dtype: ScaleDtype, start: int, stop: int) -> Quantised:
        codes, scales, zeros = self._read(start, stop)
        if self.bits == 4:
            return with_zero_points(codes, scales, zeros, dtype)
        return signed((codes ^ 128).view(np.int8), scales, dtype)

    def _numbers(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        codes, scales, zeros = self._read(start, stop)
        group = self._group_of_input() if not self._in_order() else self._consecutive()
        return (codes.astype(np.float32) - zeros[:, group]) * scales[:, group].astype(np.float32)

    def _read(self, start: int, stop: int) -> tuple[Any, Any, Any]:
        """Unsigned codes (out, in), scales and zero points (out, groups) of these outputs."""
        count = stop - start
        scales = self.parts.read("weight_scale") if self._is_one_scale() else None
        if scales is None:
            scales = self.parts.read("weight_scale", 0, start, stop)
        scales = np.broadcast_to(scales.reshape(-1, self.groups), (count, self.groups))
        if self.is_packed:
            words = self.parts.read("weight_packed", 0, start, stop)
            codes = unpacked(words, self.bits)[:, : self.inputs]
        else:
            codes = self.parts.read("weight", 0, start, stop).view(np.uint8) ^ 128
        return codes, scales, self._zeros(start, stop)

    def _is_one_scale(self) -> bool:
        shape = self.parts.info("weight_scale").shape
        return shape == () or shape[0] != self.outputs

    def _zeros(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        middle = 2 ** (self.bits - 1)
        if not self.has_zeros:
            return np.full((stop - start, self.groups), middle, np.int32)
        if not self.is_packed:
            stored = self.parts.read("weight_zero_point", 0, start, stop)
            return stored.astype(np.int32) + middle
        per_word = 32 // self.bits
        first, last = start // per_word, -(-stop // per_word)
        words = self.parts.read("weight_zero_point", 0, first, last)
        zeros = unpacked(words.T, self.bits).T[start - first * per_word :][: stop - start]
        return zeros.astype(np.int32)
