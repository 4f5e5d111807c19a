"""Quantised weights packed for the kernels, and their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch

from skynet.kernels.library import BLOCK, Library
from skynet.kernels.many_rows import by_tiles, choice
from skynet.kernels.memory import WEIGHT_MEMORY
from skynet.kernels.steps import Columns, Factors, Places, Program
from skynet.wire.blocks import BlockFormat

WORD_BYTES = 4  # of 8 codes of q4


class PackedBlocks:
    """A weight of blocks (out, groups, block), packed 32 outputs together; see quantised.c."""

    CODE_UNIT: ClassVar[int] = 1  # bytes of an output's q8 codes that stay together; of q4, a word
    NAME: ClassVar[str] = "quantised"  # of the operation in a program

    def __init__(
        self, kernels: Library, blocks: torch.Tensor, form: BlockFormat, bias: torch.Tensor | None
    ) -> None:
        """bias: (out,) float32."""
        self.outputs, self._groups, _ = blocks.shape
        self.inputs = self._groups * form.group
        self.blocks = -(-self.outputs // BLOCK)
        self._kernels, self._form = kernels, form
        self._sizes = (form.group, int(form.layout == "q4"), form.scale_bytes)
        shape = self.blocks, self._groups, BLOCK * form.block_bytes
        self._packed = WEIGHT_MEMORY.zeros(shape, torch.uint8)
        self._move(blocks.contiguous(), unpacks=False)
        self._bias = torch.zeros(self.blocks * BLOCK, dtype=torch.float32)
        if bias is not None:
            self._bias[: self.outputs] = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, in) float32, contiguous, to (rows, out) float32."""
        if len(x) >= choice().rows:
            return by_tiles(x, self._bias, self.outputs, self._unpack)
        return self._multiply(self._kernels.quantised_product, x)

    def _multiply(self, product: Callable[..., int], x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(len(x), self.outputs, dtype=torch.float32)
        failed = product(
            self._packed.data_ptr(),
            self._bias.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            len(x),
            self.inputs,
            self.outputs,
            self.outputs,
            *self._sizes,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a copy of {len(x)} x {self.inputs} activations")
        return y

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        """Add the product to a program."""
        shape = self.outputs, self.inputs
        factors = Factors(self._packed, self._bias, shape, self._sizes, operation=self.NAME)
        return program.product(factors, places, columns)

    def unpacked(self) -> torch.Tensor:
        """The blocks as they were given, a copy."""
        blocks = torch.empty(self.outputs, self._groups, self._form.block_bytes, dtype=torch.uint8)
        self._move(blocks, unpacks=True)
        return blocks

    def _move(self, blocks: torch.Tensor, unpacks: bool) -> None:
        """Copy the blocks to the packed weight, or back."""
        self._kernels.pack_blocks(
            blocks.data_ptr(),
            self._packed.data_ptr(),
            self.outputs,
            self.inputs,
            *self._sizes,
            self.CODE_UNIT if self._form.layout == "q8" else WORD_BYTES,
            int(unpacks),
            torch.get_num_threads(),
        )

    def _unpack(self, out: int, first: int, blocks: int) -> None:
        packed = self._packed.data_ptr()
        self._kernels.quantised_unpack(packed, out, self.inputs, first, blocks, *self._sizes)


class IntegerBlocks(PackedBlocks):
    """The same for activations that are rounded to int8; see integers.c."""

    CODE_UNIT = WORD_BYTES
    NAME = "integer"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, in) float32, contiguous, to (rows, out) float32.

        A row has the same bits in any number of rows.
        """
        return self._multiply(self._kernels.integer_product, x)
