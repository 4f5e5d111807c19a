"""Latent attention of one shard: its heads over the latents that every shard keeps.

A head's keys and values are products of `kv_b` with latents. Two forms give the same result:

- absorbed: queries are multiplied by the key part of `kv_b` and attend to latents, and the mix of
  latents is multiplied by its value part. It reads a latent once for all heads.
- expanded: `kv_b` makes keys and values of all latents that are seen. It has fewer operations where
  many tokens share them: `_is_expanded`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from skynet.architecture.mixers import Latent
from skynet.architecture.window import Window
from skynet.kernels.latent import LatentLayout, emit_latent
from skynet.kernels.steps import LATENT, LATENT_OUTPUT, MIXED, WIDE, Program
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.encoder_kv import Attend
from skynet.layers.latent_cache import LatentCache
from skynet.layers.linear import Linear
from skynet.layers.norm import AllReduce, RMSNorm
from skynet.layers.rope import rotate
from skynet.layers.slot_state import SlotState
from skynet.layers.weights import Loader

# Expanded keys and values, and scores, of at most so many numbers at a time: a part of the heads.
EXPANDED_NUMBERS = 16 * 2**20


class LatentAttention:
    """The products down to latents, norms, rope, slots of latents, attention, and the O product.

    `kv_b` is in float32, whatever the dtype: it is a factor of queries and of mixes, (heads, key +
    value, rank).
    """

    def __init__(self, load: Loader, kv: KVLayout, layer: int, mixer: Latent) -> None:
        arch = load.arch
        self._mixer, self._dtype, self._scale = mixer, load.dtype, arch.attention_scale
        self._heads, self._window = load.part.heads.size, arch.windows[layer]
        self.windows: tuple[Window, ...] = (self._window,)
        rope = arch.ropes[layer]
        self._rope = None if rope is None else arch.rope_kinds.index(rope)
        self._down: Linear
        self._query_norm: RMSNorm | None = None
        if load.has("q_a", layer):
            self._down = load.linear("q_a", "kv_a", layer=layer)
            self._query_norm = self._norm(load, "q_a_norm", layer)
        else:
            self._down = load.linear("kv_a", layer=layer)
        self._queries = load.linear("q", layer=layer)
        self._latent_norm = self._norm(load, "kv_a_norm", layer)
        self._kv_b = load.float32.cut("kv_b", layer).unflatten(0, (self._heads, -1))
        self._out = load.linear("o", layer=layer, bias=False)
        sizes = mixer.rank, mixer.rotary
        self._cache = LatentCache(kv, sizes, load.dtype, load.device)
        self.states: tuple[SlotState, ...] = (self._cache,)
        parts = (self._down, self._query_norm, self._queries, self._latent_norm, self._kv_b)
        self.nbytes = self._out.nbytes + sum(part.nbytes for part in parts if part is not None)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        mixer, down = self._mixer, self._down(x)
        compressed, latents, keys = down.split(
            [down.shape[-1] - mixer.rank - mixer.rotary, mixer.rank, mixer.rotary], dim=-1
        )
        if self._query_norm is not None:
            x = self._query_norm(compressed.float())
        queries = self._queries(x).unflatten(-1, (self._heads, -1))
        plain, rotated = queries.split([mixer.key, mixer.rotary], dim=-1)
        rotated = self._rotated(rotated, context)
        keys = self._rotated(keys[:, None], context)[:, 0]
        latents = self._latent_norm(latents.float())
        self._cache.store(torch.cat([latents.to(keys.dtype), keys], dim=-1), context)
        if mixer.growth is not None:
            growth = _growth(context.positions, *mixer.growth)[:, None, None]
            plain, rotated = plain * growth, rotated * growth
        return self._out(self._attend(plain, rotated, context.attends[self._window]))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        mixer, factors = self._mixer, None
        columns, normed = mixer.rank + mixer.rotary, source
        latent_norm = self._latent_norm.weights
        query_norm = None if self._query_norm is None else self._query_norm.weights
        if latent_norm is None or not self._down.emit(program, (source, WIDE)):
            return False
        if query_norm is not None:
            columns, normed = columns + query_norm.weight.numel(), LATENT
            program.norm(query_norm, WIDE, LATENT, columns)
        if mixer.growth is not None:
            positions = torch.arange(self._cache.values.shape[1])
            factors = _growth(positions, *mixer.growth)
        layout = LatentLayout(
            self._kv_b,
            latent_norm,
            mixer.rotary,
            mixer.key,
            self._scale,
            self._window,
            self._rope,
            factors,
        )
        cache, places = (self._cache.values, self._cache.scales), (LATENT_OUTPUT, (WIDE, MIXED))
        return (
            self._queries.emit(program, (normed, LATENT_OUTPUT))
            and emit_latent(program, layout, cache, columns, places)
            and self._out.emit(program, (MIXED, target))
        )

    def _norm(self, load: Loader, role: str, layer: int) -> RMSNorm:
        weight = load.float32.vector(role, layer=layer)
        return RMSNorm(weight, self._mixer.norm_eps, load.dtype)

    def _rotated(self, heads: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Rotated `heads` (tokens, heads, rotary) in float32."""
        full = heads.float().clone(memory_format=torch.contiguous_format)
        return full if self._rope is None else rotate(full, context.ropes[self._rope])

    def _attend(
        self, plain: torch.Tensor, rotated: torch.Tensor, calls: list[Attend]
    ) -> torch.Tensor:
        """Queries (tokens, heads, key) and (tokens, heads, rotary) to (tokens, heads x value)."""
        mixed = []
        for call in calls:
            tokens = slice(call.tokens.start, call.tokens.stop)
            latents = self._cache.read(call.slots, call.keys)
            form = self._expanded if self._is_expanded(call) else self._absorbed
            mixed.append(form(plain[tokens], rotated[tokens], latents, call))
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1).to(self._dtype)

    def _is_expanded(self, call: Attend) -> bool:
        """Whether the expanded form has fewer multiply-adds than the absorbed one."""
        mixer, tokens, keys = self._mixer, call.tokens.size, call.keys.size
        if call.slots.size > 1:
            return False
        made = mixer.rank * (mixer.key + mixer.value)  # a head's products with `kv_b`
        expanded = keys * made + tokens * keys * (mixer.key + mixer.rotary + mixer.value)
        return expanded < tokens * made + tokens * keys * (2 * mixer.rank + mixer.rotary)

    def _absorbed(
        self, plain: torch.Tensor, rotated: torch.Tensor, latents: torch.Tensor, call: Attend
    ) -> torch.Tensor:
        """(tokens, heads, value) float32; latents: (slots, keys, rank + rotary)."""
        rank = self._mixer.rank
        by_head = torch.bmm(plain.float().transpose(0, 1), self._kv_b[:, : self._mixer.key])
        queries = torch.cat([by_head.transpose(0, 1), rotated], dim=-1).to(self._dtype)
        is_single = call.tokens.size == call.slots.size
        if is_single:  # the heads take the place of the tokens
            queries, keys = queries[:, None], latents[:, None]
        else:
            queries, keys = queries.transpose(0, 1)[None], latents.expand(self._heads, -1, -1)[None]
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            keys[..., :rank],
            attn_mask=call.mask,
            is_causal=call.causal,
            scale=self._scale,
        )
        mixed = mixed[:, 0].transpose(0, 1) if is_single else mixed[0]
        values = self._kv_b[:, self._mixer.key :].transpose(1, 2)
        return torch.bmm(mixed.float(), values).transpose(0, 1)

    def _expanded(
        self, plain: torch.Tensor, rotated: torch.Tensor, latents: torch.Tensor, call: Attend
    ) -> torch.Tensor:
        """The same for the tokens of one slot, some heads at a time."""
        mixer, seen = self._mixer, latents[0].float()
        compressed, keys = seen.split([mixer.rank, mixer.rotary], dim=-1)
        queries = torch.cat([plain.float(), rotated], dim=-1).transpose(0, 1).to(self._dtype)
        mixed = []
        for heads in self._parts(call):
            made = torch.matmul(compressed, self._kv_b[heads].transpose(1, 2))
            own, values = made.split([mixer.key, mixer.value], dim=-1)  # (heads, keys, ...)
            shared = keys.expand(own.shape[0], -1, -1)
            mixed.append(
                F.scaled_dot_product_attention(
                    queries[None, heads],
                    torch.cat([own, shared], dim=-1)[None].to(self._dtype),
                    values[None].to(self._dtype),
                    attn_mask=call.mask,
                    is_causal=call.causal,
                    scale=self._scale,
                )[0]
            )
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).transpose(0, 1).float()

    def _parts(self, call: Attend) -> Iterator[slice]:
        """Heads whose expanded keys and values, and scores, are made at a time."""
        mixer = self._mixer
        of_head = call.keys.size * (2 * mixer.key + mixer.rotary + mixer.value + call.tokens.size)
        count = max(1, EXPANDED_NUMBERS // of_head)
        for first in range(0, self._heads, count):
            yield slice(first, min(first + count, self._heads))


def _growth(positions: torch.Tensor, factor: float, length: int) -> torch.Tensor:
    """(tokens,) float32: what queries are multiplied by at these positions."""
    return 1 + factor * torch.log(1 + torch.floor(positions / length))
