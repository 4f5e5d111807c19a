"""How the sum of the shards' partials is added to the hidden states: once, after the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from skynet.kernels.steps import INPUT, NONE, OUTPUT, NormWeights, Program
from skynet.layers.finite import no_part
from skynet.layers.norm import AllReduce, NoNorm, Norm, load_norm
from skynet.layers.weights import Loader

JOINED = ("shared_post_norm", "experts_post_norm")  # norms of the sums of an MLP and experts


class Residual(Protocol):
    """Adds the sum of all partials to the hidden states."""

    nbytes: int

    def __call__(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """The next `x`; `x` and the sum of all partials, `total`, are (tokens, hidden) float32."""
        ...

    def part(
        self, x: torch.Tensor, partial: torch.Tensor, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        """This shard's part of the next `x`: the sum of the parts over the shards is the value.

        `first` is true for one shard, whose part has all that must be in the sum once.
        """
        ...

    def emit(self, program: Program) -> bool:
        """Add the operations from `INPUT`, the hidden states, and `OUTPUT`, the sum, to the next
        `INPUT`; False: not supported.
        """
        ...


class Plain:
    """Plus the sum, plus the biases of its row-parallel products."""

    def __init__(self, bias: torch.Tensor | None, size: int) -> None:
        """size: of the hidden states."""
        self.nbytes = 0 if bias is None else bias.nbytes
        self._bias, self._size = bias, size

    def __call__(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        x = x + total
        return x if self._bias is None else x.add_(self._bias)

    def part(
        self, x: torch.Tensor, partial: torch.Tensor, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self(x, partial) if first else partial.float()

    def emit(self, program: Program) -> bool:
        return program.add(self._size, (OUTPUT, INPUT), bias=self._bias)


class Scaled:
    """Plus a multiple of the sum and of its biases."""

    def __init__(self, bias: torch.Tensor | None, size: int, scale: float) -> None:
        """size: of the hidden states."""
        self.nbytes = 0 if bias is None else bias.nbytes
        self._bias, self._size, self._scale = bias, size, scale

    def __call__(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        x = torch.add(x, total, alpha=self._scale)
        return x if self._bias is None else x.add_(self._bias, alpha=self._scale)

    def part(
        self, x: torch.Tensor, partial: torch.Tensor, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self(x, partial) if first else partial.float().mul_(self._scale)

    def emit(self, program: Program) -> bool:
        return program.add(self._size, (OUTPUT, INPUT), self._scale, self._bias)


class Normed:
    """Norms the sum before it is added, or the hidden states after.

    A norm is not a sum of parts: at the end of a span the shards make one more all-reduce, and the
    part of the first shard is the whole value.
    """

    def __init__(self, bias: torch.Tensor | None, size: int, of_sum: Norm, of_hidden: Norm) -> None:
        """size: of the hidden states."""
        self.nbytes = (0 if bias is None else bias.nbytes) + of_sum.nbytes + of_hidden.nbytes
        self._bias, self._size = bias, size
        self._of_sum, self._of_hidden = of_sum, of_hidden

    def __call__(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        total = total if self._bias is None else total + self._bias
        return self._of_hidden(x + self._of_sum(total))

    def part(
        self, x: torch.Tensor, partial: torch.Tensor, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        value = self(x, all_reduce(partial))
        return value if first else no_part(value)

    def emit(self, program: Program) -> bool:
        if self._bias is not None:
            program.add(self._size, (NONE, OUTPUT), bias=self._bias)
        return (
            _emit(program, self._of_sum, OUTPUT)
            and program.add(self._size, (OUTPUT, INPUT))
            and _emit(program, self._of_hidden, INPUT)
        )


class JoinedNorms:
    """The norm of each of several sums that are beside each other, added, and the norm of that."""

    weights: NormWeights | None = None

    def __init__(self, of_parts: Sequence[Norm], of_sum: Norm) -> None:
        self.nbytes = of_sum.nbytes + sum(norm.nbytes for norm in of_parts)
        self._of_parts, self._of_sum = of_parts, of_sum

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        parts = zip(self._of_parts, x.chunk(len(self._of_parts), dim=1), strict=True)
        first, *others = [norm(part) for norm, part in parts]
        return self._of_sum(sum(others, first))


class Times:
    """Multiplies the hidden states by one number, in the place of a norm of them."""

    weights: NormWeights | None = None

    def __init__(self, scale: torch.Tensor) -> None:
        self.nbytes, self._scale = scale.nbytes, scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._scale


def load_residual(load: Loader, block: str, roles: tuple[str, ...], layer: int) -> Residual:
    """The sum after the row-parallel products `roles` of a block: "attn", "mlp", ..."""
    bias = load.float32.row_bias(*roles, layer=layer)
    of_sum = load_norm(load, f"{block}_post_norm", layer, torch.float32)
    if block == "mlp" and load.has(JOINED[0]):
        of_sum = JoinedNorms(
            [load_norm(load, role, layer, torch.float32) for role in JOINED], of_sum
        )
    of_hidden = load_norm(load, f"{block}_sum_norm", layer, torch.float32)
    if load.has("layer_scale", layer) and roles == load.arch.sides[-1]:
        of_hidden = Times(load.float32.vector("layer_scale", layer=layer))
    size = load.arch.hidden_size
    if not (isinstance(of_sum, NoNorm) and isinstance(of_hidden, NoNorm)):
        return Normed(bias, size, of_sum, of_hidden)
    if load.arch.residual_scale != 1:
        return Scaled(bias, size, load.arch.residual_scale)
    return Plain(bias, size)


def _emit(program: Program, norm: Norm, buffer: int) -> bool:
    """Add the norm of a buffer, in place; False: not supported."""
    if isinstance(norm, NoNorm):
        return True
    return norm.weights is not None and program.norm(norm.weights, buffer, buffer)
