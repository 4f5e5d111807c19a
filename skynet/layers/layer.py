"""One layer of one shard: norms, attention and MLP, and the sums between them."""

from __future__ import annotations

from typing import Protocol

import torch

from skynet.errors import StepFailed
from skynet.kernels.steps import StepKernels
from skynet.layers.block import AttentionBlock, MLPBlock, ParallelBlock, compiled
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.cross_attention import CrossAttention
from skynet.layers.experts import Experts
from skynet.layers.mlp import MLP
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.residual import load_residual
from skynet.layers.self_attention import Attention
from skynet.layers.weights import Loader


class Layer(Protocol):
    """From the hidden states before a layer, (tokens, hidden) float32, to those after it."""

    nbytes: int
    window: int | None

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """The whole hidden states after the layer."""
        ...

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        """This shard's part of the hidden states after the layer; see `Residual.part`."""
        ...

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `Attention.copy_slot`."""
        ...

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        """See `CrossAttention.store_encoder_kv`; `x` is float32.

        Raises:
            StepFailed: the layer has no cross-attention.
        """
        ...

    def clear_kv(self, context: StepContext) -> None:
        """Zero the keys and values of a step's tokens."""
        ...

    def clear_encoder_kv(self, context: StepContext) -> None:
        """Zero the encoder KV of a step of texts."""
        ...


def load_mlp(load: Loader, layer: int) -> MLP | Experts:
    """The layer's MLP, or its mixture of experts."""
    return Experts(load, layer) if load.arch.num_experts else MLP(load, layer)


def _no_cross_attention() -> StepFailed:
    return StepFailed("this layer has no cross-attention: it cannot store an encoder's output")


class SequentialLayer:
    """Attention, a sum, the MLP of the result, and a sum.

    The decoder of an encoder-decoder has cross-attention and a sum between the two.
    """

    def __init__(self, load: Loader, kv: KVLayout, layer: int, kernels: StepKernels | None) -> None:
        attention_norm = load_norm(load, "attn_norm", layer)
        self._attention = Attention(load, kv, layer)
        self._attention_block = compiled(AttentionBlock(attention_norm, self._attention), kernels)
        self._after_attention = load_residual(load, "attn", ("o",), layer)
        self._cross = self._cross_norm = self._after_cross = None
        if load.has("cross_o"):
            self._cross_norm = load_norm(load, "cross_norm", layer)
            self._cross = CrossAttention(load, kv, layer)
            self._after_cross = load_residual(load, "cross", ("cross_o",), layer)
        mlp_norm, mlp = load_norm(load, "mlp_norm", layer), load_mlp(load, layer)
        self._mlp_block = compiled(MLPBlock(mlp_norm, mlp), kernels)
        self._after_mlp = load_residual(load, "mlp", ("down",), layer)
        self.window, self._dtype = self._attention.window, load.dtype
        parts = (
            *(attention_norm, self._attention, self._after_attention),
            *(self._cross_norm, self._cross, self._after_cross),
            *(mlp_norm, mlp, self._after_mlp),
        )
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        self._attention.copy_slot(source, target, tokens)

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        if self._cross is None:
            raise _no_cross_attention()
        self._cross.store_encoder_kv(x.to(self._dtype), context)

    def clear_kv(self, context: StepContext) -> None:
        self._attention.clear_kv(context)

    def clear_encoder_kv(self, context: StepContext) -> None:
        if self._cross is not None:
            self._cross.clear_encoder_kv(context)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        x = self._attend(x, context, all_reduce)
        return self._after_mlp(x, all_reduce(self._mlp_block(x, context, all_reduce)))

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        x = self._attend(x, context, all_reduce)
        partial = self._mlp_block(x, context, all_reduce)
        return self._after_mlp.part(x, partial, first, all_reduce)

    def _attend(self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
        total = all_reduce(self._attention_block(x, context, all_reduce))
        x = self._after_attention(x, total)
        if self._cross is None or self._cross_norm is None or self._after_cross is None:
            return x
        return self._after_cross(x, all_reduce(self._cross(self._cross_norm(x), context)))


class ParallelLayer:
    """Attention and MLP of the same hidden states, with one sum for both."""

    def __init__(self, load: Loader, kv: KVLayout, layer: int, kernels: StepKernels | None) -> None:
        norm, mlp = load_norm(load, "attn_norm", layer), load_mlp(load, layer)
        self._attention = Attention(load, kv, layer)
        mlp_norm = load_norm(load, "mlp_norm", layer) if load.has("mlp_norm") else None
        block = ParallelBlock(norm, self._attention, mlp_norm, mlp, load.arch.hidden_size)
        self._block = compiled(block, kernels)
        self._after = load_residual(load, "attn", ("o", "down"), layer)
        self.window = self._attention.window
        parts = (norm, self._attention, mlp_norm, mlp, self._after)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        self._attention.copy_slot(source, target, tokens)

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        raise _no_cross_attention()

    def clear_kv(self, context: StepContext) -> None:
        self._attention.clear_kv(context)

    def clear_encoder_kv(self, context: StepContext) -> None:
        """There is none."""

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self._after(x, all_reduce(self._block(x, context, all_reduce)))

    def part(
        self, x: torch.Tensor, context: StepContext, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        return self._after.part(x, self._block(x, context, all_reduce), first, all_reduce)
