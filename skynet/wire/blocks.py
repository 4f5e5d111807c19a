"""Quantised matrices as they lie in Redis and are sent: uint8 arrays (out, groups, block).

A block has what belongs to one group of inputs of one output: its codes, its scale and, in q4, its
minimum; see `skynet.wire.quantised`. So a matrix is cut along outputs and along groups of inputs as
any array is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from skynet.errors import WireError
from skynet.wire.quantised import Layout, Quantised

NAME = re.compile(r"(q8|q4)_([1-9][0-9]{0,8})_(float16|float32)")
GROUP_UNIT = 8  # inputs: groups are multiples, as the kernels need them
ScaleDtype = Literal["float16", "float32"]
SCALES: dict[ScaleDtype, str] = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True)
class BlockFormat:
    """The layout of a matrix's blocks; `group` inputs share a block."""

    layout: Layout
    group: int
    scale_dtype: ScaleDtype

    def __post_init__(self) -> None:
        if self.group < GROUP_UNIT or self.group % GROUP_UNIT:
            raise WireError(f"groups of {self.group} inputs: expected a multiple of {GROUP_UNIT}")

    @classmethod
    def parse(cls, name: str) -> BlockFormat:
        """The format of this name, as `str` gives it.

        Raises:
            WireError: none has it.
        """
        match = NAME.fullmatch(name)
        if match is None:
            raise WireError(
                f"{name!r:.40} is not a format of quantised matrices: q4_32_float16, say"
            )
        layout, group, scale_dtype = match.groups()
        return cls(cast(Layout, layout), int(group), cast(ScaleDtype, scale_dtype))

    def __str__(self) -> str:
        return f"{self.layout}_{self.group}_{self.scale_dtype}"

    @property
    def code_bytes(self) -> int:
        """Bytes of a block's codes."""
        return self.group if self.layout == "q8" else self.group // 2

    @property
    def scale_bytes(self) -> int:
        return 2 if self.scale_dtype == "float16" else 4

    @property
    def block_bytes(self) -> int:
        return self.code_bytes + self.scale_bytes * (1 if self.layout == "q8" else 2)

    def shape(self, outputs: int, inputs: int) -> tuple[int, int, int]:
        """Of the blocks of a matrix (out, in).

        Raises:
            WireError: the last group would have fewer inputs.
        """
        if inputs % self.group:
            raise WireError(f"{inputs} inputs are not a multiple of groups of {self.group}")
        return outputs, inputs // self.group, self.block_bytes

    def num_bytes(self, outputs: int, inputs: int) -> int:
        """Of a matrix (out, in)."""
        return outputs * (inputs // self.group) * self.block_bytes


def to_blocks(matrix: Quantised) -> npt.NDArray[np.uint8]:
    """A matrix as (out, groups, block); its format follows from its layout, group and scales."""
    outputs, groups = matrix.scales.shape
    little = SCALES["float16" if matrix.scales.dtype == np.float16 else "float32"]
    numbers = [matrix.scales] + ([] if matrix.minimums is None else [matrix.minimums])
    parts = [matrix.codes.view(np.uint8).reshape(outputs, groups, -1)]
    parts += [part.astype(little)[:, :, None].view(np.uint8) for part in numbers]
    return np.concatenate(parts, axis=2)


def from_blocks(blocks: npt.NDArray[np.uint8], form: BlockFormat) -> Quantised:
    """The inverse of `to_blocks`.

    Raises:
        WireError: the blocks are not of this format.
    """
    if blocks.ndim != 3 or blocks.dtype != np.uint8 or blocks.shape[2] != form.block_bytes:
        raise WireError(f"{blocks.dtype}{list(blocks.shape)} are not blocks of {form}")

    def numbers(start: int) -> npt.NDArray[Any]:
        part = np.ascontiguousarray(blocks[:, :, start : start + form.scale_bytes])
        return part.view(SCALES[form.scale_dtype])[:, :, 0]

    codes = np.ascontiguousarray(blocks[:, :, : form.code_bytes]).reshape(len(blocks), -1)
    scales, is_q8 = numbers(form.code_bytes), form.layout == "q8"
    return Quantised(
        form.layout,
        form.group,
        codes.view(np.int8) if is_q8 else codes,
        scales,
        None if is_q8 else numbers(form.code_bytes + form.scale_bytes),
    )
