"""Tables whose rows are looked up, and quantised weights as numbers."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from skynet.wire.blocks import BlockFormat

SCALES = {"float16": torch.float16, "float32": torch.float32}


class Rows(Protocol):
    """A table (rows, width)."""

    nbytes: int
    width: int
    dtype: torch.dtype  # of what is looked up

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, (count,), to (count, width); a copy."""
        ...


class NumberRows:
    """A table of numbers. Rows of float16, which partials do not travel in, become float32."""

    def __init__(self, table: torch.Tensor) -> None:
        self.nbytes, self.width = table.nbytes, table.shape[1]
        self.dtype = torch.float32 if table.dtype == torch.float16 else table.dtype
        self._table = table

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        return F.embedding(numbers, self._table).to(self.dtype)


class BlockRows:
    """A table of blocks (rows, groups, block): only the rows that are looked up become numbers."""

    def __init__(self, blocks: torch.Tensor, form: BlockFormat, dtype: torch.dtype) -> None:
        self.nbytes, self.width, self.dtype = blocks.nbytes, blocks.shape[1] * form.group, dtype
        self._blocks, self._form = blocks, form

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        return dequantised(self._blocks[numbers], self._form).to(self.dtype)


def dequantised(blocks: torch.Tensor, form: BlockFormat) -> torch.Tensor:
    """Blocks (out, groups, block) as float32 (out, in): see `Quantised.dequantised`."""
    codes = blocks[..., : form.code_bytes]
    if form.layout == "q8":
        return (codes.view(torch.int8) * _numbers(blocks, form, 0)).flatten(1)
    unpacked = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(2)
    return (unpacked * _numbers(blocks, form, 0)).add_(_numbers(blocks, form, 1)).flatten(1)


def _numbers(blocks: torch.Tensor, form: BlockFormat, index: int) -> torch.Tensor:
    """The scales (index 0) or minimums (1), (out, groups, 1) float32."""
    start = form.code_bytes + index * form.scale_bytes
    part = blocks[..., start : start + form.scale_bytes].contiguous()
    return part.view(SCALES[form.scale_dtype]).float()
