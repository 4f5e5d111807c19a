"""Keys and values that layers of a stage take from an earlier layer, of this stage or another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.layers.attention import store
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.context import StepContext
from skynet.layers.layer import Layer
from skynet.layers.self_attention import Attention
from skynet.layers.shared_attention import QueriesOnly
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range


class SharedKV:
    """The caches by the layer that computes their keys and values.

    copies: those of layers of earlier stages, which this stage has once for all of its layers.
    """

    def __init__(self, load: Loader, kv: KVLayout, layers: Sequence[Layer], run: Range) -> None:
        """layers: of the stage, which are `run`; they are given their caches."""
        self._load = load
        self.copies: dict[int, KVCache] = {}
        self._own: dict[int, KVCache] = {}
        for number, layer in zip(range(run.start, run.stop), layers, strict=True):
            for mixer in layer.mixers:
                if isinstance(mixer, Attention) and mixer.cache is not None:
                    self._own[number] = mixer.cache
                elif isinstance(mixer, QueriesOnly):
                    mixer.cache = self._own.get(mixer.source) or self._copy(kv, mixer.source)

    def __contains__(self, source: int) -> bool:
        """Whether this stage has the keys and values of a layer."""
        return source in self._own or source in self.copies

    def columns(self, source: int, context: StepContext) -> torch.Tensor:
        """This shard's part of the keys and values of a step's tokens, (tokens, columns) float32.

        All K heads of the layer, then its V heads; those of other shards are zeros. One that
        several shards have is in the part of the shard with its first query head.
        """
        cache = self._own.get(source) or self.copies[source]
        load = self._load.at(source)
        heads, kv_heads, group = load.part.heads, load.part.kv_heads, load.arch.group
        first = -(-heads.start // group)  # the first KV head of which the shard has all before
        own = cache.tokens(context.slots, context.positions).unflatten(1, (2, -1))
        shape = (len(own), 2, load.arch.num_kv_heads, load.arch.head_dim)
        every = torch.zeros(shape, device=own.device)
        every[:, :, first : kv_heads.stop] = own[:, :, first - kv_heads.start :]
        return every.flatten(1)

    def store(self, source: int, columns: torch.Tensor, context: StepContext) -> None:
        """Write a step's keys and values of a layer of an earlier stage to their slots."""
        load = self._load.at(source)
        kv_heads, shape = load.part.kv_heads, (2, load.arch.num_kv_heads, load.arch.head_dim)
        own = columns.unflatten(1, shape)[:, :, kv_heads.start : kv_heads.stop]
        store(self.copies[source], own.flatten(1, 2).to(load.dtype), context)

    def _copy(self, kv: KVLayout, source: int) -> KVCache:
        if source not in self.copies:
            load = self._load.at(source)
            heads = 2 * load.part.kv_heads.size
            self.copies[source] = KVCache(kv, heads, load.arch.head_dim, load.dtype, load.device)
        return self.copies[source]
