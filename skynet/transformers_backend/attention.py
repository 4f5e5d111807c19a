"""The attention function that Transformers' modules call: attention over the KV slots of a layer.

It is registered without a mask function, so Transformers makes no masks: the step's context says
which keys a token sees.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from skynet.errors import StepFailed
from skynet.layers.attention import Attending, Kernel, attend, capped_attention, store
from skynet.layers.cache import KVCache, KVLayout
from skynet.layers.context import StepContext
from skynet.transformers_backend.loader import TransformersLoader
from skynet.transformers_backend.state import Running
from skynet.transformers_backend.trace import unsupported_arguments

ATTENTION = "skynet"


class Slots:
    """Keys and values of one layer of one shard, and attention over them."""

    def __init__(
        self, load: TransformersLoader, kv: KVLayout, layer: int, running: Running
    ) -> None:
        self._arch, self._part, self._running = load.arch, load.part, running
        self.window = load.arch.windows[layer]
        kv_heads = 2 * load.part.kv_heads.size
        self._cache = KVCache(kv, kv_heads, load.arch.head_dim, load.dtype, load.device)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `KVCache.copy_slot`."""
        self._cache.copy_slot(source, target, tokens)

    def clear_kv(self, context: StepContext) -> None:
        """See `Layer.clear_kv`."""
        self._cache.clear(context.slots, context.positions)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        cap: float | None,
    ) -> torch.Tensor:
        """(1, heads, tokens, head_dim) each, to (1, tokens, heads, head_dim).

        Which heads are given and returned: see `TransformersArchitecture.heads_of`.
        """
        if self._arch.heads_of == "local":
            return self._of_shard(query, key, value, scale, cap)[None]
        heads, kv_heads = self._part.heads, self._part.kv_heads
        mixed = self._of_shard(
            query[:, heads.start : heads.stop],
            key[:, kv_heads.start : kv_heads.stop],
            value[:, kv_heads.start : kv_heads.stop],
            scale,
            cap,
        )
        padded = F.pad(mixed, (0, 0, heads.start, self._arch.num_heads - heads.stop))
        if self._arch.heads_of == "whole":
            padded = self._running.sum(padded.flatten(1)).view_as(padded)
        return padded[None]

    def _of_shard(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        cap: float | None,
    ) -> torch.Tensor:
        """Attention of the shard's heads: (tokens, heads, head_dim)."""
        num_heads = (query.shape[1], key.shape[1])
        if num_heads != (self._part.heads.size, self._part.kv_heads.size):
            raise StepFailed(
                f"attention was given {num_heads[0]} query heads and {num_heads[1]} KV heads, the "
                f"plan has {self._part.heads.size} and {self._part.kv_heads.size} for this shard"
            )
        context, dtype = self._running.context, self._cache.dtype
        new = torch.cat([key[0], value[0]]).transpose(0, 1).to(dtype)
        store(self._cache, new, context)
        kernel: Kernel = F.scaled_dot_product_attention
        if cap is not None:
            kernel = partial(capped_attention, cap=cap)
        queries = query[0].transpose(0, 1).to(dtype)
        scale = self._arch.head_dim**-0.5 if scale is None else scale
        mixed = attend(queries, self._cache, context.attends[self.window], Attending(scale, kernel))
        return mixed.unflatten(1, (-1, self._arch.head_dim)).to(query.dtype)


def register_attention() -> str:
    """Register the attention function with Transformers, and return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    return ATTENTION


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    unsupported = unsupported_arguments({"attention_mask": attention_mask, **arguments})
    if unsupported:
        raise StepFailed(
            f"{type(module).__name__} calls attention with {unsupported}: not supported"
        )
    slots: Slots = module.skynet_slots  # type: ignore[assignment]
    return slots.attend(query, key, value, scaling, softcap), None
