"""One decoder layer of one shard: norms, attention and MLP, and the sums between them."""

from __future__ import annotations

from typing import Protocol

import torch

from skynet.architecture.architecture import Architecture
from skynet.errors import StepFailed
from skynet.layers.context import StepContext
from skynet.layers.cross_attention import CrossAttention
from skynet.layers.experts import Experts
from skynet.layers.mlp import MLP
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.residual import load_residual
from skynet.layers.self_attention import Attention
from skynet.layers.weights import Loader
from skynet.planning.plan import Plan, ShardPlan


class Layer(Protocol):
    """From the hidden states before a layer, (tokens, hidden) float32, to those after it."""

    nbytes: int
    window: int | None

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """The hidden states after the layer, whole."""
        ...

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        """This shard's part of them; see `Residual.part`."""
        ...

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `Attention.copy_slot`."""
        ...

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        """See `CrossAttention.store_encoder_kv`; `x` is float32."""
        ...


def load_mlp(arch: Architecture, layer: int, load: Loader) -> MLP | Experts:
    """What follows attention: one MLP, or many to choose of."""
    return Experts(arch, layer, load) if arch.num_experts else MLP(arch, layer, load)


class SequentialLayer:
    """Attention, a sum, then the MLP of what came of it, and a sum.

    Between the two, in an encoder-decoder's decoder: attention to what was read, and a sum.
    """

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
        self._cross = self._cross_norm = self._after_cross = None
        if load.has("cross_o"):
            self._cross_norm = load_norm(arch, load, "cross_norm", layer, dtype)
            self._cross = CrossAttention(arch, plan, part, layer, load, dtype, device)
            self._after_cross = load_residual(arch, load, "cross", ("cross_o",), layer)
        self._mlp_norm = load_norm(arch, load, "mlp_norm", layer, dtype)
        self._mlp = load_mlp(arch, layer, load)
        self._after_mlp = load_residual(arch, load, "mlp", ("down",), layer)
        self.window, self._dtype = self._attention.window, dtype
        parts = (
            *(self._attention_norm, self._attention, self._after_attention),
            *(self._cross_norm, self._cross, self._after_cross),
            *(self._mlp_norm, self._mlp, self._after_mlp),
        )
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        self._attention.copy_slot(source, target, tokens)

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        if self._cross is None:
            raise StepFailed("a layer that attends to no encoder was given what one has read")
        self._cross.store_encoder_kv(x.to(self._dtype), context)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        x = self._attend(x, context, all_reduce)
        return self._after_mlp(x, all_reduce(self._mlp(self._mlp_norm(x))))

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        x = self._attend(x, context, all_reduce)
        return self._after_mlp.part(x, self._mlp(self._mlp_norm(x)), first, all_reduce)

    def _attend(self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
        total = all_reduce(self._attention(self._attention_norm(x), context, all_reduce))
        x = self._after_attention(x, total)
        if self._cross is None or self._cross_norm is None or self._after_cross is None:
            return x
        return self._after_cross(x, all_reduce(self._cross(self._cross_norm(x), context)))


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

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        raise StepFailed("a layer that attends to no encoder was given what one has read")

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self._after(x, all_reduce(self._partial(x, context, all_reduce)))

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self._after.part(x, self._partial(x, context, all_reduce), first, all_reduce)

    def _partial(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        normed = self._norm(x)
        mlp = self._mlp(normed if self._mlp_norm is None else self._mlp_norm(x))
        return self._attention(normed, context, all_reduce).add_(mlp)
