"""`SkynetShards` of a model on the Transformers backend, which has no partials to compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check.skynet_head import ShardResult, SkynetHead
from skynet.check.skynet_shards import LoadedLayer, SkynetShards
from skynet.check.stacks import CheckedStack
from skynet.errors import UnsupportedModel
from skynet.layers.lockstep import ShardOutputs
from skynet.layers.regions import Fetch
from skynet.planning.plan import Plan
from skynet.transformers_backend.shard_group import ShardGroup


class BackendShards(SkynetShards):
    """Transformers' layers, cut by its plan."""

    def __init__(
        self, arch: Architecture, plan: Plan, fetch: Fetch, stacks: Sequence[CheckedStack]
    ) -> None:
        super().__init__(arch, plan, fetch, stacks)
        if not isinstance(arch, TransformersArchitecture):
            raise UnsupportedModel(f"{arch.model_type} does not run on the Transformers backend")
        self._group = ShardGroup(arch, plan, fetch, stacks[0].ids)
        self.head = _BackendHead(self._group, arch, plan, fetch, stacks[0])

    def embed(self, stack: CheckedStack) -> ShardOutputs:
        """The hidden states before layer 0, of each shard."""
        return ShardOutputs([], self._group.embed())

    def load_layer(self, stack: CheckedStack, layer: int) -> LoadedLayer:
        """All shards of a layer, in place of the previous one."""
        self._group.load_layer(layer)
        return _BackendLayer(self._group)


class _BackendLayer:
    """The `LoadedLayer` of a group."""

    def __init__(self, group: ShardGroup) -> None:
        self._group = group

    def run(self, x: torch.Tensor, encoder_output: torch.Tensor | None = None) -> ShardOutputs:
        """`x` (tokens, hidden) float32 through the layer."""
        return ShardOutputs([], self._group.run_layer(x))


class _BackendHead(SkynetHead):
    """Logits by Transformers' norm and head."""

    def __init__(
        self, group: ShardGroup, arch: Architecture, plan: Plan, fetch: Fetch, stack: CheckedStack
    ) -> None:
        super().__init__(arch, plan, fetch, stack)
        self._group = group

    def logits(self, hidden: Sequence[torch.Tensor]) -> list[list[ShardResult]]:
        """Of (rows, hidden): logits of each shard's part of the vocabulary."""
        starts = [part.vocab.start for part in self._parts]
        return [
            [ShardResult(shard, starts[shard], values) for shard, values in enumerate(by_shard)]
            for by_shard in self._group.logits(hidden)
        ]
