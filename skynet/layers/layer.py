"""One decoder layer of one shard: norms, attention and MLP, and the sums between them."""

from __future__ import annotations

from typing import Protocol

import torch

from skynet.layers.block import MLP, Attention
from skynet.layers.context import StepContext
from skynet.layers.experts import Experts
from skynet.layers.norm import AllSum, load_norm
from skynet.layers.residual import load_residual
from skynet.layers.weights import Loader
from skynet.models.architecture import Architecture
from skynet.planning.plan import Plan, ShardPlan


class Layer(Protocol):
    """From the hidden states before a layer, (tokens, hidden) float32, to those after it."""

    nbytes: int
    window: int | None

    def __call__(self, x: torch.Tensor, context: StepContext, all_sum: AllSum) -> torch.Tensor:
        """The hidden states after the layer, whole."""
        ...

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_sum: AllSum
    ) -> torch.Tensor:
        """This shard's part of them; see `Residual.part`."""
        ...

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `Attention.copy_slot`."""
        ...


def load_mlp(arch: Architecture, layer: int, load: Loader) -> MLP | Experts:
    """What follows attention: one MLP, or many to choose of."""
    return Experts(arch, layer, load) if arch.num_experts else MLP(arch, layer, load)


class SequentialLayer:
    """Attention, a sum, then the MLP of what came of it, and a sum."""

    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        part: ShardPlan,
        layer: int,
        load: Loader,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._attention_norm = load_norm(arch, load, "attn_norm", layer, dtype)
        self._attention = Attention(arch, plan, part, layer, load, dtype, device)
        self._after_attention = load_residual(arch, load, "attn", ("o",), layer)
        self._mlp_norm = load_norm(arch, load, "mlp_norm", layer, dtype)
        self._mlp = load_mlp(arch, layer, load)
        self._after_mlp = load_residual(arch, load, "mlp", ("down",), layer)
        self.window = self._attention.window
        self.nbytes = (
            self._attention_norm.nbytes
            + self._attention.nbytes
            + self._after_attention.nbytes
            + self._mlp_norm.nbytes
            + self._mlp.nbytes
            + self._after_mlp.nbytes
        )

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        self._attention.copy_slot(source, target, tokens)

    def __call__(self, x: torch.Tensor, context: StepContext, all_sum: AllSum) -> torch.Tensor:
        total = all_sum(self._attention(self._attention_norm(x), context, all_sum))
        x = self._after_attention(x, total)
        return self._after_mlp(x, all_sum(self._mlp(self._mlp_norm(x))))

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_sum: AllSum
    ) -> torch.Tensor:
        total = all_sum(self._attention(self._attention_norm(x), context, all_sum))
        x = self._after_attention(x, total)
        return self._after_mlp.part(x, self._mlp(self._mlp_norm(x)), first, all_sum)


class ParallelLayer:
    """Attention and MLP of the same hidden states, and one sum for both."""

    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        part: ShardPlan,
        layer: int,
        load: Loader,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._norm = load_norm(arch, load, "attn_norm", layer, dtype)
        self._attention = Attention(arch, plan, part, layer, load, dtype, device)
        own_norm = load.has("mlp_norm")
        self._mlp_norm = load_norm(arch, load, "mlp_norm", layer, dtype) if own_norm else None
        self._mlp = load_mlp(arch, layer, load)
        self._after = load_residual(arch, load, "attn", ("o", "down"), layer)
        self.window = self._attention.window
        parts = (self._norm, self._attention, self._mlp_norm, self._mlp, self._after)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        self._attention.copy_slot(source, target, tokens)

    def __call__(self, x: torch.Tensor, context: StepContext, all_sum: AllSum) -> torch.Tensor:
        return self._after(x, all_sum(self._partial(x, context, all_sum)))

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_sum: AllSum
    ) -> torch.Tensor:
        return self._after.part(x, self._partial(x, context, all_sum), first, all_sum)

    def _partial(self, x: torch.Tensor, context: StepContext, all_sum: AllSum) -> torch.Tensor:
        normed = self._norm(x)
        mlp = self._mlp(normed if self._mlp_norm is None else self._mlp_norm(x))
        return self._attention(normed, context, all_sum).add_(mlp)
