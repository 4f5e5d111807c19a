"""One layer of one shard: its sides, each a block and the sum of the shards' partials of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from skynet.architecture.weight import INPUT_OUTPUT
from skynet.errors import StepFailed
from skynet.kernels.steps import StepKernels
from skynet.layers.block import Block, Branch, CompiledBlock, Module, SideBySide, compiled
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.cross_attention import CrossAttention
from skynet.layers.experts import Experts
from skynet.layers.mixers import MixerModule, load_mixer
from skynet.layers.mlp import MLP
from skynet.layers.norm import AllReduce, NoNorm, Norm, load_norm
from skynet.layers.per_layer_input import PerLayerInput
from skynet.layers.residual import JOINED, Residual, load_residual
from skynet.layers.weights import Loader


class Side(NamedTuple):
    """A part of a layer that ends with a sum: attention, cross-attention, MLP, or several."""

    block: Block | CompiledBlock
    after: Residual

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """The next hidden states, (tokens, hidden) float32."""
        return self.after(x, all_reduce(self.block(x, context, all_reduce)))


class Layer:
    """From the hidden states before a layer, (tokens, hidden) float32, to those after it.

    windows: those that its mixers attend with.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        mixers: Sequence[MixerModule],
        cross: CrossAttention | None,
        dtype: torch.dtype,
    ) -> None:
        self.sides, self.mixers = sides, mixers
        self._cross, self._dtype = cross, dtype
        self.states = [state for mixer in mixers for state in mixer.states]
        self.windows = {window for mixer in mixers for window in mixer.windows}
        self.nbytes = sum(part.nbytes for side in sides for part in side)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """The whole hidden states after the layer."""
        for side in self.sides:
            x = side(x, context, all_reduce)
        return x

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `SlotState.copy_slot`."""
        for state in self.states:
            state.copy_slot(source, target, tokens)

    def store_encoder_kv(self, x: torch.Tensor, context: StepContext) -> None:
        """See `CrossAttention.store_encoder_kv`; `x` is float32.

        Raises:
            StepFailed: the layer has no cross-attention.
        """
        if self._cross is None:
            raise StepFailed(
                "this layer has no cross-attention: it cannot store an encoder's output"
            )
        self._cross.store_encoder_kv(x.to(self._dtype), context)

    def clear(self, context: StepContext) -> None:
        """Undo what a step's tokens have written to their slots; see `SlotState.clear`."""
        for state in self.states:
            state.clear(context.slots, context.positions)

    def clear_encoder_kv(self, context: StepContext) -> None:
        """Zero the encoder KV of a step of texts."""
        if self._cross is not None:
            self._cross.encoder_kv.clear(context.slots, context.positions)


def load_layer(load: Loader, kv: KVLayout, layer: int, kernels: StepKernels | None) -> Layer:
    """A layer of the stack that `load` loads, by its number there.

    Mixers, a sum, the MLP of the result, and a sum; or, in parallel, both with one sum. The decoder
    of an encoder-decoder has cross-attention and a sum between the two. Per-layer inputs are the
    last side.
    """
    load = load.at(layer)
    arch = load.arch
    norm = load_norm(load, "attn_norm", layer) if arch.mixers else None
    mixers = [load_mixer(load, kv, layer, mixer) for mixer in arch.mixers]
    branches = _branches(norm, mixers)
    sides: list[Side] = []
    cross: CrossAttention | None = None

    def side(branches: list[Branch], name: str, kind: type[Block] = Block) -> Side:
        block = compiled(kind(branches, arch.hidden_size), kernels)
        return Side(block, load_residual(load, name, arch.sides[len(sides)], layer))

    if arch.parallel:
        mlp_norm = load_norm(load, "mlp_norm", layer) if load.has("mlp_norm") else None
        branches += _branches(mlp_norm, load_mlp(load, layer))
        return Layer([side(branches, "attn")], mixers, cross, load.dtype)
    if mixers:
        sides.append(side(branches, "attn"))
    if load.has("cross_o"):
        cross = CrossAttention(load, kv, layer)
        cross_norm = load_norm(load, "cross_norm", layer)
        sides.append(side(_branches(cross_norm, [cross]), "cross"))
    if arch.has_mlp:
        mlp_norm = load_norm(load, "mlp_norm", layer)
        if load.has(JOINED[0]):
            sides.append(side(_side_by_side(load, layer, mlp_norm), "mlp", SideBySide))
        else:
            sides.append(side(_branches(mlp_norm, load_mlp(load, layer)), "mlp"))
    if load.has(INPUT_OUTPUT):
        own = PerLayerInput(load, layer)
        sides.append(side(_branches(NoNorm(load.dtype), [own]), "input"))
    return Layer(sides, mixers, cross, load.dtype)


def load_mlp(load: Loader, layer: int) -> list[Module]:
    """The layer's MLP; or its mixture of experts, with the MLP that all tokens share."""
    if not load.arch.num_experts:
        return [MLP(load, layer)]
    modules: list[Module] = [Experts(load, layer)]
    if load.has("shared_down", layer):
        modules.append(MLP(load, layer, "shared_"))
    return modules


def _side_by_side(load: Loader, layer: int, norm: Norm) -> list[Branch]:
    """An MLP beside experts that have another norm; norm: of the MLP's input."""
    experts = Branch(NoNorm(torch.float32), Experts(load, layer))
    return [Branch(norm, MLP(load, layer, "shared_")), experts]


def _branches(norm: Norm | None, modules: Sequence[Module]) -> list[Branch]:
    """All of them take the result of one norm."""
    return [Branch(None if index else norm, module) for index, module in enumerate(modules)]
