"""bfloat16 weights packed for the kernels, and their products with float32 activations."""

from __future__ import annotations

import torch

from skynet.kernels.library import BLOCK, Library
from skynet.kernels.many_rows import by_tiles, choice
from skynet.kernels.steps import Columns, Factors, Places, Program


class PackedWeight:
    """A weight (out, in) of bfloat16 in blocks of 32 outputs; see products.c."""

    def __init__(self, kernels: Library, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """bias: (out,) float32."""
        self.outputs, self.inputs = weight.shape
        self.blocks = -(-self.outputs // BLOCK)
        self._kernels = kernels
        padded = self.blocks * BLOCK
        packed = torch.zeros(self.blocks, self.inputs, BLOCK, dtype=torch.bfloat16)
        _halves(packed)[: self.outputs // BLOCK] = (
            weight[: self.outputs // BLOCK * BLOCK]
            .unflatten(0, (-1, 2, BLOCK // 2))
            .permute(0, 3, 2, 1)
        )
        rest = self.outputs % BLOCK
        if rest:
            last = torch.zeros(BLOCK, self.inputs, dtype=torch.bfloat16)
            last[:rest] = weight[-rest:]
            _halves(packed)[-1] = last.unflatten(0, (2, BLOCK // 2)).permute(2, 1, 0)
        self._packed = packed
        self._bias = torch.zeros(padded, dtype=torch.float32)
        if bias is not None:
            self._bias[: self.outputs] = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, in) float32, contiguous, to (rows, out) float32."""
        rows = x.shape[0]
        if rows >= choice().rows:
            return by_tiles(x, self._bias, self.outputs, self._unpack)
        y = torch.empty(rows, self.outputs, dtype=torch.float32)
        self._kernels.product(
            self._packed.data_ptr(),
            self._bias.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            rows,
            self.inputs,
            self.outputs,
            self.outputs,
            torch.get_num_threads(),
        )
        return y

    def emit(self, program: Program, places: Places, columns: Columns | None = None) -> bool:
        """Add the product to a program."""
        shape = self.outputs, self.inputs
        return program.product(Factors(self._packed, self._bias, shape), places, columns)

    def dense(self) -> torch.Tensor:
        """The weight in the plain layout, (out, in) bfloat16."""
        plain = _halves(self._packed).permute(0, 3, 2, 1).reshape(-1, self.inputs)
        return plain[: self.outputs]

    def _unpack(self, out: int, first: int, blocks: int) -> None:
        self._kernels.unpack(self._packed.data_ptr(), out, self.inputs, first, blocks)


def _halves(packed: torch.Tensor) -> torch.Tensor:
    """(blocks, in, 32) as (blocks, in, 16, 2): the pairs of outputs that share 32 bits."""
    return packed.unflatten(2, (BLOCK // 2, 2))
