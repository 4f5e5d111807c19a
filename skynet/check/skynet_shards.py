"""SkyNet's shards, a layer or an embedding at a time, loaded from the checkpoint.

Each shard is the same as a worker's; the all-reduce is `skynet/layers/lockstep.py`'s. Knows nothing
of Transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from skynet.architecture.architecture import Architecture
from skynet.check.skynet_head import CPU, SkynetHead
from skynet.check.stacks import CheckedStack
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.dtypes import Dtypes
from skynet.layers.embedding import load_embedding
from skynet.layers.encoder import Encoder
from skynet.layers.layer import Layer
from skynet.layers.lockstep import ShardOutputs, run_in_lockstep, sum_partials
from skynet.layers.norm import AllReduce
from skynet.layers.regions import Fetch
from skynet.layers.stack import Stack
from skynet.layers.weights import Loader
from skynet.planning.carried import sources_of
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.wire.step import Step


class LoadedLayer(Protocol):
    """The shards of one layer."""

    def run(self, x: torch.Tensor, encoder_output: torch.Tensor | None = None) -> ShardOutputs:
        """`x` (tokens, hidden) float32 through the layer."""
        ...


class SkynetShards:
    """A plan's shards; each stack takes its row in one step."""

    def __init__(
        self, arch: Architecture, plan: Plan, fetch: Fetch, stacks: Sequence[CheckedStack]
    ) -> None:
        self.arch, self.plan, self.stacks = arch, plan, stacks
        self.head = SkynetHead(arch, plan, fetch, stacks[-1])
        self._fetch, self._dtypes = fetch, Dtypes.of(plan)
        self._sources = sources_of(arch, Range(0, arch.num_layers)) if arch.kinds else set()
        # What layers take besides the hidden states: see `skynet/planning/carried.py`.
        self._embeddings: torch.Tensor | None = None
        self._shared: dict[int, torch.Tensor] = {}

    def parts(self, layer: int) -> tuple[ShardPlan, ...]:
        """The shards of a layer's stage."""
        return self.plan.stages[self.plan.stage_of(layer)].shards

    def embed(self, stack: CheckedStack) -> ShardOutputs:
        """A stack's embedding: partials (tokens, embedding), outputs the first layer's input."""
        shards = [
            load_embedding(self._loader(part, stack)) for part in self.parts(stack.layers.start)
        ]
        ids = torch.tensor(stack.ids)
        partials = [shard.partial(ids) for shard in shards]
        total, positions = sum_partials(partials), torch.arange(len(ids))
        outputs = [shard.complete(total, ids, positions) for shard in shards]
        self._embeddings = outputs[0]
        return ShardOutputs([partials], outputs)

    def load_layer(self, stack: CheckedStack, layer: int) -> LoadedLayer:
        """All shards of a layer, counted over all stacks; free them before the next one."""
        shards = [self._layer_shard(part, stack, layer) for part in self.parts(layer)]
        return _Layers(shards, self._keep if layer in self._sources else None)

    def _keep(self, shards: Sequence[_LayerShard]) -> None:
        """Keep the keys and values of a layer that later ones share, from its first run."""
        source = shards[0].stack.run.start
        if source not in self._shared:
            parts = [shard.stack.shared.columns(source, shard.context) for shard in shards]
            self._shared[source] = sum_partials(parts)

    def encoder_output(self, x: torch.Tensor) -> ShardOutputs:
        """The encoder's output from `x`, the output of its last layer.

        Each shard of the decoder's first stage computes it.
        """
        stack, layer = self.stacks[0], self.arch.encoder_layers
        step, span, runs = self._step(stack), Range(layer, layer + 1), []
        for part in self.parts(layer):
            encoder = Encoder(self._loader(part, stack), KVLayout.of(self.plan), span)
            runs.append(partial(_run_encoder, encoder, step, span, x))
        return run_in_lockstep(runs)

    def _loader(self, part: ShardPlan, stack: CheckedStack) -> Loader:
        return Loader(stack.arch, stack.part(part), self._fetch, self._dtypes, CPU)

    def _step(self, stack: CheckedStack) -> Step:
        return Step(self.plan.epoch, 1, (stack.row,), 1, stack.layers.start)

    def _layer_shard(self, part: ShardPlan, stack: CheckedStack, layer: int) -> _LayerShard:
        layers = self._load(part, stack, Range(layer, layer + 1))
        (loaded,) = layers.of(layers.run)
        encoder_context = None
        if stack.encoder is not None:
            encoder = self._load(part, stack.encoder, layers.run)
            encoder_context = encoder.prepare(self._step(stack.encoder))
        context = replace(layers.prepare(self._step(stack)), embeddings=self._embeddings)
        for source in layers.shared.copies:
            layers.shared.store(source, self._shared[source], context)
        return _LayerShard(layers, loaded, context, encoder_context)

    def _load(self, part: ShardPlan, stack: CheckedStack, layers: Range) -> Stack:
        """A shard's layers of a stack; none if they all belong to the other stack."""
        return Stack(self._loader(part, stack), KVLayout.of(self.plan), layers)


def _run_encoder(
    encoder: Encoder, step: Step, span: Range, x: torch.Tensor, all_reduce: AllReduce
) -> torch.Tensor:
    context = encoder.stack.prepare(step)
    return encoder.run(context, span, x, True, all_reduce)[0]


@dataclass(frozen=True)
class _LayerShard:
    """One shard of a layer, alone in its stack, the step's context, and the encoder's context for
    cross-attention."""

    stack: Stack
    layer: Layer
    context: StepContext
    encoder_context: StepContext | None


class _Layers:
    """A `LoadedLayer` of SkyNet's layers."""

    def __init__(
        self,
        shards: list[_LayerShard],
        after: Callable[[Sequence[_LayerShard]], None] | None = None,
    ) -> None:
        """after: called after each run."""
        self._shards, self._after = shards, after

    def run(self, x: torch.Tensor, encoder_output: torch.Tensor | None = None) -> ShardOutputs:
        """`x` (tokens, hidden) float32 through the layer."""
        for shard in self._shards:
            if shard.encoder_context is not None and encoder_output is not None:
                shard.layer.store_encoder_kv(encoder_output, shard.encoder_context)
        run = run_in_lockstep([partial(each.layer, x, each.context) for each in self._shards])
        if self._after is not None:
            self._after(self._shards)
        return run
