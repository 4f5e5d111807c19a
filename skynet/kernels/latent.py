"""Latent attention as an operation of a decoding step; see latent.c."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from skynet.architecture.window import Chunk, Window
from skynet.kernels.attention import KV_DTYPES
from skynet.kernels.steps import (
    Float,
    NormWeights,
    Number,
    Places,
    Pointer,
    Program,
    address,
)

MAX_WIDTH = 4096  # numbers of a latent and a key: threads keep some of them on their stacks


class _Latent(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("cache", "scales", "norm_weight", "kv_b")),
        ("query_factors", Pointer),
        *((name, Number) for name in ("kind", "heads", "rank", "rotary", "key", "value")),
        *((name, Number) for name in ("slot_tokens", "window", "chunk", "rope")),
        *((name, Number) for name in ("columns", "queries", "source", "target")),
        *((name, Float) for name in ("norm_eps", "scale")),
    )


@dataclass(frozen=True)
class LatentLayout:
    """Latent attention of one shard's heads; its norm is of latents.

    kv_b: (heads, key + value, rank) float32.
    rotary: numbers of a rotated key; key: the other numbers of a head's query.
    rope: the number of the model's rope; None: none.
    query_factors: (slot_tokens,) float32: what queries are multiplied by, by their position.
    """

    kv_b: torch.Tensor
    norm: NormWeights
    rotary: int
    key: int
    scale: float
    window: Window = None
    rope: int | None = None
    query_factors: torch.Tensor | None = None


def emit_latent(
    program: Program,
    layout: LatentLayout,
    cache: tuple[torch.Tensor, torch.Tensor | None],
    columns: int,
    places: tuple[int, Places],
) -> bool:
    """Add norm, rope, store and attention.

    cache: (slots, tokens, rank + rotary), and scales (slots, tokens, 2).
    columns: of the source, whose last ones are a latent and a key.
    places: the buffer of queries; source and target.
    """
    values, scales = cache
    kind, (heads, both, rank) = KV_DTYPES.get(values.dtype), layout.kv_b.shape
    if kind is None or not heads or rank + layout.rotary > MAX_WIDTH or layout.norm.kind != "rms":
        return False
    window, (queries, (source, target)) = layout.window, places
    value = both - layout.key
    arguments = _Latent(
        values.data_ptr(),
        *(address(scales), address(layout.norm.weight), address(layout.kv_b)),
        address(layout.query_factors),
        *(kind, heads, rank, layout.rotary, layout.key, value, values.shape[1]),
        *((0, window.size) if isinstance(window, Chunk) else (window or 0, 0)),
        -1 if layout.rope is None else layout.rope,
        *(columns, queries, source, target),
        *(layout.norm.eps, layout.scale),
    )
    return program.append("latent", arguments, target, heads * value, layout, cache)
