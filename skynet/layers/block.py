"""One side of a layer, up to its sum: a norm and attention, a norm and the MLP, or all of them.

A block is made of PyTorch modules. Where the kernels support all of its parts, decoding steps run
as one call of a program made from them.
"""

from __future__ import annotations

from typing import Protocol

import torch

from skynet.kernels.steps import INPUT, NORMED, OTHER, OUTPUT, Program, StepKernels
from skynet.layers.context import StepContext
from skynet.layers.experts import Experts
from skynet.layers.mlp import MLP
from skynet.layers.norm import AllReduce, NoNorm, Norm
from skynet.layers.self_attention import Attention


class Block(Protocol):
    """From hidden states (tokens, hidden) float32 to this shard's partial of the same shape."""

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor: ...

    def emit(self, program: Program) -> bool:
        """Add the operations from `INPUT` to `OUTPUT`; False: not supported."""
        ...


class AttentionBlock:
    """Norm and self-attention."""

    def __init__(self, norm: Norm, attention: Attention) -> None:
        self._norm, self._attention = norm, attention

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self._attention(self._norm(x), context, all_reduce)

    def emit(self, program: Program) -> bool:
        normed = _emit_norm(program, self._norm)
        return normed is not None and self._attention.emit(program, normed, OUTPUT)


class MLPBlock:
    """Norm and MLP."""

    def __init__(self, norm: Norm, mlp: MLP | Experts) -> None:
        self._norm, self._mlp = norm, mlp

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self._mlp(self._norm(x))

    def emit(self, program: Program) -> bool:
        normed = _emit_norm(program, self._norm)
        return normed is not None and self._mlp.emit(program, normed, OUTPUT)


class ParallelBlock:
    """Attention and MLP of the same hidden states, normed once or by a norm each."""

    def __init__(
        self,
        norm: Norm,
        attention: Attention,
        mlp_norm: Norm | None,
        mlp: MLP | Experts,
        hidden_size: int,
    ) -> None:
        self._hidden = hidden_size
        self._norm, self._attention, self._mlp_norm, self._mlp = norm, attention, mlp_norm, mlp

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        normed = self._norm(x)
        mlp = self._mlp(normed if self._mlp_norm is None else self._mlp_norm(x))
        return self._attention(normed, context, all_reduce).add_(mlp)

    def emit(self, program: Program) -> bool:
        normed = _emit_norm(program, self._norm)
        if normed is None or not self._attention.emit(program, normed, OUTPUT):
            return False
        if self._mlp_norm is not None:
            normed = _emit_norm(program, self._mlp_norm)
        return (
            normed is not None
            and self._mlp.emit(program, normed, OTHER)
            and program.add(self._hidden, OTHER, OUTPUT)
        )


class CompiledBlock:
    """A block as a program of the kernels for decoding steps; as it is for others."""

    def __init__(self, block: Block, program: Program) -> None:
        self._block, self._program = block, program

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        if context.decoding is None:
            return self._block(x, context, all_reduce)
        return self._program(x, context.decoding)

    def emit(self, program: Program) -> bool:
        return self._block.emit(program)


def compiled(block: Block, kernels: StepKernels | None) -> Block:
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
