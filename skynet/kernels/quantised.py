"""Quantised weights packed for the kernels, and their products with float32 activations."""

from __future__ import annotations

import torch

from skynet.kernels.library import BLOCK, Library
from skynet.kernels.many_rows import by_tiles, choice
from skynet.kernels.steps import Columns, Factors, Places, Program
from skynet.wire.blocks import BlockFormat

WORD_INPUTS = 8  # of q4: see quantised.c


class PackedBlocks:
    """A weight of blocks (out, groups, block), packed 32 outputs together; see quantised.c."""

    def __init__(
        self, kernels: Library, blocks: torch.Tensor, form: BlockFormat, bias: torch.Tensor | None
    ) -> None:
        """bias: (out,) float32."""
        self.outputs, self._groups, _ = blocks.shape
        self.inputs = self._groups * form.group
        self.blocks = -(-self.outputs // BLOCK)
        self._kernels, self._form = kernels, form
        self._packed = torch.zeros(
            self.blocks, self._groups, BLOCK * form.block_bytes, dtype=torch.uint8
        )
        whole = self.outputs // BLOCK
        _copy(blocks[: whole * BLOCK], self._packed[:whole], form)
        if whole < self.blocks:
            edge = torch.zeros(BLOCK, *blocks.shape[1:], dtype=torch.uint8)
            edge[: self.outputs - whole * BLOCK] = blocks[whole * BLOCK :]
            _copy(edge, self._packed[whole:], form)
        self._bias = torch.zeros(self.blocks * BLOCK, dtype=torch.float32)
        if bias is not None:
            self._bias[: self.outputs] = bias
        self._sizes = (form.group, int(form.layout == "q4"), form.scale_bytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, in) float32, contiguous, to (rows, out) float32."""
        rows = x.shape[0]
        if rows >= choice().rows:
            return by_tiles(x, self._bias, self.outputs, self._unpack)
        y = torch.empty(rows, self.outputs, dtype=torch.float32)
        failed = self._kernels.quantised_product(
            self._packed.data_ptr(),
            self._bias.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            rows,
            self.inputs,
            self.outputs,
            self.outputs,
            *self._sizes,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a copy of {rows} x {self.inputs} activations")
        return y

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        """Add the product to a program."""
        shape = self.outputs, self.inputs
        factors = Factors(self._packed, self._bias, shape, self._sizes)
        return program.product(factors, places, columns)

    def unpacked(self) -> torch.Tensor:
        """The blocks as they were given, a copy."""
        blocks = torch.empty(
            self.blocks * BLOCK, self._groups, self._form.block_bytes, dtype=torch.uint8
        )
        for packed, part in zip(
            _parts(self._packed, self._form), _rows(blocks, self._form), strict=True
        ):
            part.copy_(packed)
        return blocks[: self.outputs]

    def _unpack(self, out: int, first: int, blocks: int) -> None:
        packed = self._packed.data_ptr()
        self._kernels.quantised_unpack(packed, out, self.inputs, first, blocks, *self._sizes)


def _copy(blocks: torch.Tensor, packed: torch.Tensor, form: BlockFormat) -> None:
    """Whole blocks of 32 outputs, (out, groups, block), to their records."""
    for part, record in zip(_rows(blocks, form), _parts(packed, form), strict=True):
        record.copy_(part)


def _rows(blocks: torch.Tensor, form: BlockFormat) -> list[torch.Tensor]:
    """Scales, minimums and codes of rows: views (out / 32, groups, 32, number, bytes of one)."""
    codes, each = form.code_bytes, form.scale_bytes
    grouped = blocks.unflatten(0, (-1, BLOCK)).transpose(1, 2)
    numbers = range(codes, form.block_bytes, each)
    return [
        *(grouped[..., start : start + each].unflatten(-1, (1, each)) for start in numbers),
        grouped[..., :codes].unflatten(-1, (-1, _code_unit(form))),
    ]


def _parts(packed: torch.Tensor, form: BlockFormat) -> list[torch.Tensor]:
    """The same parts of records, as views of the same shapes."""
    codes, each = form.code_bytes, form.scale_bytes
    factors = form.block_bytes - codes
    numbers = range(0, factors * BLOCK, each * BLOCK)
    scales = [packed[..., start : start + each * BLOCK] for start in numbers]
    return [
        *(part.unflatten(-1, (BLOCK, 1, each)) for part in scales),
        packed[..., factors * BLOCK :].unflatten(-1, (-1, BLOCK, _code_unit(form))).transpose(2, 3),
    ]


def _code_unit(form: BlockFormat) -> int:
    """Bytes of a row's codes that stay together: one, or a word of q4."""
    return 1 if form.layout == "q8" else WORD_INPUTS // 2
