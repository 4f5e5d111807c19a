"""GPTQ: codes packed along the inputs, and a scale and a zero point for a group of inputs.

The layout of AutoGPTQ and GPTQModel: qweight int32 (in x bits / 32, out), qzeros int32
(groups, out x bits / 32), scales (groups, out), g_idx (in), the group of each input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.formats.matrix import (
    Matrix,
    ScaleDtype,
    rounded,
    signed,
    with_zero_points,
)
from skynet.checkpoint.formats.parts import (
    FLOATS,
    Parts,
    Settings,
    Tensors,
    group_size,
    modules,
    require,
    unpacked,
)
from skynet.errors import CheckpointError
from skynet.wire.quantised import Layout, Quantised

Numbers = npt.NDArray[Any]


def matrices(settings: Settings, tensors: Tensors) -> dict[str, Matrix]:
    """The quantised matrices of a checkpoint, by name.

    Raises:
        UnsupportedModel: a setting that is not supported.
        CheckpointError: tensors that do not belong together.
    """
    require(settings, "bits", 4, 8)
    require(settings, "pack_dtype", "int32", default="int32")
    require(settings, "checkpoint_format", "gptq", "gptq_v2", default="gptq")
    return {parts.name: _matrix(_Module(parts, settings)) for parts in modules(tensors, "qweight")}


def _matrix(module: _Module) -> Matrix:
    """Exact if each group is of consecutive inputs, and 8-bit codes are symmetric."""
    name, shape = module.parts.name, (module.outputs, module.inputs)
    if not module.in_order():
        return rounded(name, shape, "GPTQ with desc_act", module.numbers)
    if module.bits == 8 and not module.symmetric:
        return rounded(name, shape, "8-bit GPTQ with zero points", module.numbers)
    layout: Layout = "q4" if module.bits == 4 else "q8"
    return Matrix(name, shape, layout, module.group, module.scale_dtype, module.rows)


class _Module:
    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.parts, self.bits = parts, settings["bits"]
        self.symmetric = settings.get("sym", True) is True
        # The first version of the format stores zero points less one.
        self.zero_offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
        per_word = 32 // self.bits
        self.per_word = per_word
        self.inputs, self.outputs = parts.size("qweight", 0) * per_word, parts.size("qweight", 1)
        self.group = group_size(settings, self.inputs)
        self.groups = -(-self.inputs // self.group)
        parts.check("qweight", (self.inputs // per_word, self.outputs), "int32")
        parts.check("scales", (self.groups, self.outputs), *FLOATS)
        parts.check("qzeros", (self.groups, -(-self.outputs // per_word)), "int32")

    @property
    def scale_dtype(self) -> ScaleDtype:
        is_half = self.parts.info("scales").dtype == "float16"
        return "float16" if self.symmetric and is_half else "float32"

    def in_order(self) -> bool:
        """Whether each group is of consecutive inputs."""
        return np.array_equal(self._group_of_input(), np.arange(self.inputs) // self.group)

    def rows(self, start: int, stop: int) -> Quantised:
        codes, scales, zeros = self._read(start, stop)
        middle = 2 ** (self.bits - 1)
        if self.symmetric and (zeros != middle).any():
            raise CheckpointError(
                f"{self.parts.prefix}qzeros: zero points are not {middle}, though the "
                "quantization_config says sym; correct that"
            )
        if self.bits == 4:
            return with_zero_points(codes, scales, zeros, self.scale_dtype)
        return signed((codes ^ 128).view(np.int8), scales, self.scale_dtype)

    def numbers(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        codes, scales, zeros = self._read(start, stop)
        group = self._group_of_input()
        return (codes.astype(np.float32) - zeros[:, group]) * scales[:, group].astype(np.float32)

    def _read(self, start: int, stop: int) -> tuple[npt.NDArray[np.uint8], Numbers, Numbers]:
        """Codes (out, in), scales and zero points (out, groups) of outputs [start, stop)."""
        first, last = start // self.per_word, -(-stop // self.per_word)
        words = self.parts.read("qzeros", 1, first, last)
        skipped = start - first * self.per_word
        zeros = unpacked(words, self.bits)[:, skipped : skipped + stop - start].T
        codes = unpacked(self.parts.read("qweight", 1, start, stop).T, self.bits)
        scales = self.parts.read("scales", 1, start, stop).T
        return codes, scales, zeros.astype(np.int32) + self.zero_offset

    def _group_of_input(self) -> Numbers:
        if not self.parts.has("g_idx"):
            return np.arange(self.inputs) // self.group
        self.parts.check("g_idx", (self.inputs,), "int32")
        groups: Numbers = self.parts.read("g_idx")
        if groups.size and not 0 <= groups.min() <= groups.max() < self.groups:
            raise CheckpointError(
                f"{self.parts.prefix}g_idx names groups {groups.min()} to {groups.max()} of "
                f"{self.groups}; download the checkpoint again"
            )
        return groups
