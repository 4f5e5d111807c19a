"""One side of a layer, up to its sum: norms, and attention, the MLP, or several of them.

A block is made of PyTorch modules. Where the kernels support all of its parts, decoding steps run
as one call of a program made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from skynet.kernels.steps import INPUT, NORMED, OTHER, OUTPUT, Program, StepKernels
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce, NoNorm, Norm


class Module(Protocol):
    """Attention, an MLP or another part of a layer whose products are summed over the shards."""

    nbytes: int

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """Normed `x` (tokens, hidden) to this shard's partial of the same shape and dtype.

        all_reduce: for sums within the module, before that of its side.
        """
        ...

    def emit(self, program: Program, source: int, target: int) -> bool:
        """Add the operations from `source`, normed, to the partial; False: not supported."""
        ...


class Branch(NamedTuple):
    """A norm and what takes its result. norm: None: the result of the branch before's."""

    norm: Norm | None
    module: Module


class Block:
    """From hidden states (tokens, hidden) float32 to the sum of the branches' partials."""

    def __init__(self, branches: Sequence[Branch], hidden_size: int) -> None:
        self._branches, self._hidden = branches, hidden_size
        self.nbytes = sum(part.nbytes for branch in branches for part in branch if part is not None)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        normed, total = x, None
        for norm, module in self._branches:
            normed = normed if norm is None else norm(x)
            partial = module(normed, context, all_reduce)
            total = partial if total is None else total.add_(partial)
        return x if total is None else total

    def emit(self, program: Program) -> bool:
        """Add the operations from `INPUT` to `OUTPUT`; False: not supported."""
        normed: int | None = INPUT
        for index, (norm, module) in enumerate(self._branches):
            normed = normed if norm is None else _emit_norm(program, norm)
            target = OTHER if index else OUTPUT
            if normed is None or not module.emit(program, normed, target):
                return False
            if index and not program.add(self._hidden, (OTHER, OUTPUT)):
                return False
        return True


class SideBySide(Block):
    """A block whose sum has the branches' partials beside each other, (tokens, branches x hidden).

    Each sum is normed before they are added: see `JoinedNorms`.
    """

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        partials = [
            module(x if norm is None else norm(x), context, all_reduce)
            for norm, module in self._branches
        ]
        return torch.cat(partials, dim=1)

    def emit(self, program: Program) -> bool:
        return False


class CompiledBlock:
    """A block as a program of the kernels for decoding steps; as it is for others."""

    def __init__(self, block: Block, program: Program) -> None:
        self._block, self.program = block, program
        self.nbytes = block.nbytes

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        if context.decoding is None:
            return self._block(x, context, all_reduce)
        self.program.prepare(context.step.rows)
        return self.program(x, context.decoding, all_reduce)


def compiled(block: Block, kernels: StepKernels | None) -> Block | CompiledBlock:
    """The block with its program, if the kernels support all of it."""
    if kernels is None:
        return block
    program = kernels.program()
    return CompiledBlock(block, program) if block.emit(program) else block


def _emit_norm(program: Program, norm: Norm) -> int | None:
    """Add the norm of the input; the buffer that then has it, or None: not supported."""
    if isinstance(norm, NoNorm):
        return INPUT
    weights = norm.weights
    return NORMED if weights is not None and program.norm(weights, INPUT, NORMED) else None
