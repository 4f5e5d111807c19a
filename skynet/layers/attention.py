"""Attention of one shard's heads over its KV slots, without weights."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F

from skynet.layers.cache import KVCache
from skynet.layers.context import StepContext
from skynet.layers.encoder_kv import Attend


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


def attend(
    queries: torch.Tensor,
    cache: KVCache,
    calls: list[Attend],
    scale: float,
    kernel: Kernel = F.scaled_dot_product_attention,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`queries` (tokens, heads, head_dim) over `cache` to (tokens, heads x head_dim).

    sinks: (kv_heads, group) float32, for `sink_attention` in place of `kernel`.
    """
    if len(calls) == 1:
        return _one_call(queries, cache, calls[0], scale, kernel, sinks)
    out = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    for call in calls:
        part = slice(call.tokens.start, call.tokens.stop)
        out[part] = _one_call(queries[part], cache, call, scale, kernel, sinks)
    return out


def _one_call(
    queries: torch.Tensor,
    cache: KVCache,
    call: Attend,
    scale: float,
    kernel: Kernel,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    keys, values = cache.read(call.slots, call.keys)
    grouped = queries.unflatten(1, (cache.kv_heads, -1))  # (tokens, kv_heads, group, head_dim)
    if call.tokens.size == call.slots.size:
        # One token per slot: the queries of a group take the place of a sequence's tokens, so that
        # the kernel reads each key once for the whole group.
        kernel = kernel if sinks is None else partial(sink_attention, sinks=sinks[..., None])
        mixed = kernel(grouped, keys, values, attn_mask=call.mask, scale=scale)
        return mixed.reshape(queries.shape[0], -1)
    # One slot, many tokens: KV heads take the place of the batch, and a group shares its keys by a
    # stride of zero.
    group = grouped.shape[2]
    kernel = kernel if sinks is None else partial(sink_attention, sinks=sinks[..., None, None])
    mixed = kernel(
        grouped.permute(1, 2, 0, 3),
        keys[0].unsqueeze(1).expand(-1, group, -1, -1),
        values[0].unsqueeze(1).expand(-1, group, -1, -1),
        attn_mask=call.mask,
        is_causal=call.causal,
        scale=scale,
    )
    return mixed.permute(2, 0, 1, 3).reshape(queries.shape[0], -1)
