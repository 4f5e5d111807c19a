"""Attention of one shard's heads over its KV slots, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture
from skynet.kernels.library import kernels
from skynet.kernels.prompts import attend_prompt, can_attend
from skynet.layers.cache import KVCache
from skynet.layers.context import StepContext
from skynet.layers.encoder_kv import Attend
from skynet.planning.plan import ShardPlan


class Kernel(Protocol):
    """The signature of `scaled_dot_product_attention`."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> torch.Tensor: ...


def kv_of_queries(arch: Architecture, part: ShardPlan, device: torch.device) -> torch.Tensor | None:
    """Which of the shard's KV heads each of its query heads has, where it has parts of groups.

    None where it has whole groups, or a part of one: its KV heads have equally many each.
    """
    heads, kv_heads = part.heads, part.kv_heads
    if kv_heads.size == 1 or not (heads.start % arch.group or heads.stop % arch.group):
        return None
    numbers = torch.arange(heads.start, heads.stop, device=device)
    return numbers // arch.group - kv_heads.start


def store(cache: KVCache, new: torch.Tensor, context: StepContext) -> None:
    """Write the keys and values `new` (tokens, K and V heads, head_dim) to their slots."""
    if context.single_token is not None:
        slot, position = context.single_token
        cache[slot, :, position] = new[0]
    else:
        cache[context.slots, :, context.positions] = new


def capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    cap: float,
) -> torch.Tensor:
    """A `Kernel` whose scores become cap * tanh(score / cap) before the mask, in float32."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-1, -2)).float().mul_(scale / cap).tanh_().mul_(cap)
    return _masked(scores, attn_mask, is_causal).softmax(-1).to(value.dtype) @ value


def sink_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """A `Kernel` with a sink (Xiao et al., 2023, arXiv:2309.17453): the softmax has one more score,
    of a key without a value. `sinks` (float32) broadcasts to the scores of one key.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = _masked((query @ key.transpose(-1, -2)).float().mul_(scale), attn_mask, is_causal)
    scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(-1)[..., :-1].to(value.dtype) @ value


def _masked(scores: torch.Tensor, mask: torch.Tensor | None, is_causal: bool) -> torch.Tensor:
    if is_causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril_()
        scores.masked_fill_(~visible, float("-inf"))
    return scores if mask is None else scores.add_(mask)


def kernel_of(cap: float | None) -> Kernel:
    """The kernel of scores that may be capped."""
    return F.scaled_dot_product_attention if cap is None else partial(capped_attention, cap=cap)


@dataclass(frozen=True)
class Attending:
    """How the queries of a layer attend.

    kernel: not used with sinks.
    sinks: (heads,) float32: see `sink_attention`.
    kv_of_query: see `kv_of_queries`.
    """

    scale: float
    kernel: Kernel = F.scaled_dot_product_attention
    sinks: torch.Tensor | None = None
    kv_of_query: torch.Tensor | None = None

    def kernel_for(self, scores: int, group: int) -> Kernel:
        """For scores with so many dimensions after those of KV heads and their groups."""
        if self.sinks is None:
            return self.kernel
        sinks = self.sinks.view(-1, group, *(1,) * scores)
        return partial(sink_attention, sinks=sinks)


def attend(
    queries: torch.Tensor,
    cache: KVCache,
    calls: list[Attend],
    how: Attending,
) -> torch.Tensor:
    """`queries` (tokens, heads, head_dim) over `cache` to (tokens, heads x head_dim)."""
    if len(calls) == 1:
        return _one_call(queries, cache, calls[0], how)
    out = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    for call in calls:
        part = slice(call.tokens.start, call.tokens.stop)
        out[part] = _one_call(queries[part], cache, call, how)
    return out


def _one_call(queries: torch.Tensor, cache: KVCache, call: Attend, how: Attending) -> torch.Tensor:
    keys, values = cache.read(call.slots, call.keys)
    by_kernel = _by_kernel(queries, keys[0], values[0], call, how)
    if by_kernel is not None:
        return by_kernel
    if how.kv_of_query is not None:  # copies, one for each query head: groups of one
        keys, values = keys[:, how.kv_of_query], values[:, how.kv_of_query]
    grouped = queries.unflatten(1, (keys.shape[1], -1))  # (tokens, kv_heads, group, head_dim)
    if call.tokens.size == call.slots.size:
        # One token per slot: the queries of a group take the place of a sequence's tokens, so that
        # the kernel reads each key once for the whole group.
        kernel = how.kernel_for(1, grouped.shape[2])
        mixed = kernel(grouped, keys, values, attn_mask=call.mask, scale=how.scale)
        return mixed.reshape(queries.shape[0], -1)
    # One slot, many tokens: KV heads take the place of the batch, and a group shares its keys by a
    # stride of zero.
    group = grouped.shape[2]
    mixed = how.kernel_for(2, group)(
        grouped.permute(1, 2, 0, 3),
        keys[0].unsqueeze(1).expand(-1, group, -1, -1),
        values[0].unsqueeze(1).expand(-1, group, -1, -1),
        attn_mask=call.mask,
        is_causal=call.causal,
        scale=how.scale,
    )
    return mixed.permute(2, 0, 1, 3).reshape(queries.shape[0], -1)


def _by_kernel(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: Attend, how: Attending
) -> torch.Tensor | None:
    """The kernel's result for many tokens of one slot; None: it does not support the call."""
    plain = how.kernel is F.scaled_dot_product_attention and how.sinks is None
    library = kernels() if plain and call.sight is not None else None
    heads, kv_heads = queries.shape[1], len(keys)
    group = heads // kv_heads if how.kv_of_query is None else heads
    if library is None or call.sight is None or not can_attend(queries, keys, group):
        return None
    if how.kv_of_query is None:
        return attend_prompt(library, queries, keys, values, call.sight, how.scale).flatten(1)
    # Query heads are in the order of their KV heads.
    counts = torch.bincount(how.kv_of_query, minlength=kv_heads).tolist()
    groups = zip(queries.split(counts, dim=1), keys.split(1), values.split(1), strict=True)
    parts = [attend_prompt(library, *each, call.sight, how.scale) for each in groups]
    return torch.cat(parts, dim=1).flatten(1)
