"""Weights of numbers packed for the kernels, and their products with float32 activations."""

from __future__ import annotations

from collections.abc import Callable

import torch

from skynet.kernels.library import BLOCK, Library
from skynet.kernels.many_rows import by_tiles, choice
from skynet.kernels.memory import WEIGHT_MEMORY
from skynet.kernels.steps import NUMBERS, Columns, Factors, Places, Program


class PackedWeight:
    """A weight (out, in) of one of `NUMBERS`, packed.

    blocks: (blocks of 32 outputs, in, 32); see products.c.
    """

    def __init__(self, kernels: Library, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """bias: (out,) float32."""
        self.outputs, self.inputs = weight.shape
        self._kernels, self._number = kernels, NUMBERS[weight.dtype]
        blocks = -(-self.outputs // BLOCK)
        self.blocks = WEIGHT_MEMORY.zeros((blocks, self.inputs, BLOCK), weight.dtype)
        self._move(kernels.pack, weight.contiguous())
        self._bias = torch.zeros(blocks * BLOCK, dtype=torch.float32)
        if bias is not None:
            self._bias[: self.outputs] = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, in) float32, contiguous, to (rows, out) float32."""
        rows = x.shape[0]
        if rows >= choice().rows:
            return by_tiles(x, self._bias, self.outputs, self._unpack)
        y = torch.empty(rows, self.outputs, dtype=torch.float32)
        self._kernels.product(
            self.blocks.data_ptr(),
            self._bias.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            rows,
            self.inputs,
            self.outputs,
            self.outputs,
            self._number,
            torch.get_num_threads(),
        )
        return y

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        """Add the product to a program."""
        shape = self.outputs, self.inputs
        factors = Factors(self.blocks, self._bias, shape, number=self._number)
        return program.product(factors, places, columns)

    def dense(self) -> torch.Tensor:
        """The weight in the plain layout, (out, in); a copy."""
        plain = torch.empty(self.outputs, self.inputs, dtype=self.blocks.dtype)
        self._move(self._kernels.dense, plain)
        return plain

    def _move(self, move: Callable[..., None], plain: torch.Tensor) -> None:
        """Between the plain layout and the packed one."""
        move(
            plain.data_ptr(),
            self.blocks.data_ptr(),
            self.inputs,
            self.outputs,
            self._number,
            torch.get_num_threads(),
        )

    def _unpack(self, out: int, first: int, blocks: int) -> None:
        packed, threads = self.blocks.data_ptr(), torch.get_num_threads()
        self._kernels.unpack(packed, out, self.inputs, first, blocks, self._number, threads)
