"""Products of many rows: a part of a weight at a time becomes float32, and is multiplied then.

There are two ways, and measure.py finds out which one is faster in this process. The kernel sums
in the order of the few-row kernel of products.c, so that a row has the same bits beside any number
of others.

bfloat16 products of parts of the activations, high, middle and low, are not among the ways. Summed
in float32, two parts have an error of 2.4e-6, ten times that of a float32 product, and three parts
that of a float32 product. But PyTorch rounds the result of each to bfloat16, an error of 1.7e-3;
oneDNN's mode that keeps it in float32 is one switch for all products of a process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from skynet.kernels.library import BLOCK, Library, kernels

# Given an address, the first block and the number of blocks: writes their weights there as
# (in, blocks x 32) float32.
Unpack = Callable[[int, int, int], None]

KERNEL, TORCH = "SkyNet's kernel", "PyTorch's product"
TILE_BYTES = 2**20  # of float32 weights at a time
UNPACKED_ROWS = 32


@dataclass(frozen=True)
class Choice:
    """How this process multiplies many rows.

    rows: fewer are multiplied by the few-row kernels, on weights as they are.
    """

    way: str = KERNEL
    rows: int = UNPACKED_ROWS


_choice = Choice()


def choice() -> Choice:
    """What this process uses."""
    return _choice


def keep(chosen: Choice) -> None:
    """Use this from now on, in all threads."""
    global _choice
    _choice = chosen


def by_tiles(x: torch.Tensor, bias: torch.Tensor, outputs: int, unpack: Unpack) -> torch.Tensor:
    """`x` (rows, in) float32, contiguous, to (rows, outputs).

    bias: a number for each output of all blocks.
    """
    library = kernels() if _choice.way == KERNEL else None
    if library is None:
        return by_torch(x, bias, outputs, unpack)
    return by_kernel(library, x, bias, outputs, unpack)


def by_kernel(
    library: Library, x: torch.Tensor, bias: torch.Tensor, outputs: int, unpack: Unpack
) -> torch.Tensor:
    """See `by_tiles`; matrices.c multiplies."""
    (rows, inputs), total = x.shape, len(bias) // BLOCK
    tile_blocks, block_bytes = _tile_blocks(total, inputs), inputs * BLOCK * 4
    y = torch.empty(rows, outputs, dtype=torch.float32)
    memory = torch.empty(tile_blocks, inputs, BLOCK, dtype=torch.float32)
    for first in range(0, total, tile_blocks):
        blocks = min(tile_blocks, total - first)
        for index in range(blocks):  # one at a time: (blocks, in, 32)
            unpack(memory.data_ptr() + index * block_bytes, first + index, 1)
        at = first * BLOCK
        library.multiply(
            memory.data_ptr(),
            bias.data_ptr() + at * 4,
            x.data_ptr(),
            y.data_ptr() + at * 4,
            rows,
            inputs,
            min(blocks * BLOCK, outputs - at),
            outputs,
            torch.get_num_threads(),
        )
    return y


def by_torch(x: torch.Tensor, bias: torch.Tensor, outputs: int, unpack: Unpack) -> torch.Tensor:
    """See `by_tiles`; PyTorch multiplies."""
    inputs, total = x.shape[1], len(bias) // BLOCK
    tile_blocks = _tile_blocks(total, inputs)
    y = torch.empty(x.shape[0], total * BLOCK, dtype=torch.float32)
    memory = torch.empty(inputs * tile_blocks * BLOCK, dtype=torch.float32)
    for first in range(0, total, tile_blocks):
        blocks = min(tile_blocks, total - first)
        tile = memory[: inputs * blocks * BLOCK].view(inputs, blocks * BLOCK)
        unpack(tile.data_ptr(), first, blocks)
        columns = slice(first * BLOCK, (first + blocks) * BLOCK)
        y[:, columns] = torch.addmm(bias[columns], x, tile)
    return y if outputs == y.shape[1] else y[:, :outputs].contiguous()


def _tile_blocks(total: int, inputs: int) -> int:
    return max(1, min(total, TILE_BYTES // (inputs * BLOCK * 4 or 1)))
