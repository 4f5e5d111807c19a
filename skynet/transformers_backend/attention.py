"""The attention function that Transformers' modules call here: ours, over the slots of a layer.

It is registered without a mask function, so that Transformers makes no masks: who sees which keys
is told by the step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.errors import StepFailed
from skynet.layers.attention import Kernel, attend, capped_attention, store
from skynet.layers.cache import allocate, copy_slot
from skynet.planning.plan import Plan, ShardPlan
from skynet.transformers_backend.state import Running
from skynet.transformers_backend.trace import not_computed

ATTENTION = "skynet"


class Slots:
    """Keys and values of one layer of one shard, and attention over them."""

    def __init__(
        self,
        arch: TransformersArchitecture,
        plan: Plan,
        part: ShardPlan,
        layer: int,
        running: Running,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.window = arch.windows[layer]
        self._arch, self._part, self._running = arch, part, running
        self._cache = allocate(
            plan.num_slots, 2 * part.kv_heads.size, plan.slot_tokens, arch.head_dim, dtype, device
        )

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `skynet.layers.cache.copy_slot`."""
        copy_slot(self._cache, source, target, tokens)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        cap: float | None,
    ) -> torch.Tensor:
        """(1, heads, tokens, head_dim) each, to (1, tokens, heads, head_dim).

        The heads that come and those that leave are as `Derived.heads_of` says.
        """
        if self._arch.heads_of == "local":
            return self._own(query, key, value, scale, cap)[None]
        heads, kv_heads = self._part.heads, self._part.kv_heads
        mixed = self._own(
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

    def _own(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        cap: float | None,
    ) -> torch.Tensor:
        """The shard's heads to (tokens, heads, head_dim)."""
        found = (query.shape[1], key.shape[1])
        if found != (self._part.heads.size, self._part.kv_heads.size):
            raise StepFailed(
                f"{found[0]} query heads and {found[1]} KV heads come to attention, the plan has "
                f"{self._part.heads.size} and {self._part.kv_heads.size} for this shard"
            )
        context, dtype = self._running.context, self._cache.dtype
        new = torch.cat([key[0], value[0]]).transpose(0, 1).to(dtype)
        store(self._cache, new, context)
        kernel: Kernel = F.scaled_dot_product_attention
        if cap is not None:
            kernel = partial(capped_attention, cap=cap)
        queries = query[0].transpose(0, 1).to(dtype)
        scale = self._arch.head_dim**-0.5 if scale is None else scale
        mixed = attend(queries, self._cache, context.attends[self.window], scale, kernel)
        return mixed.unflatten(1, (-1, self._arch.head_dim)).to(query.dtype)


def register_attention() -> str:
    """Make Transformers know our attention function, and return its name."""
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
    **given: Any,
) -> tuple[torch.Tensor, None]:
    asked = not_computed({"attention_mask": attention_mask, **given})
    if asked:
        raise StepFailed(f"{type(module).__name__} gives {asked} to attention: not computed")
    slots: Slots = module.skynet_slots  # type: ignore[assignment]
    return slots.attend(query, key, value, scaling, softcap), None
