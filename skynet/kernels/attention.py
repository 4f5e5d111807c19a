"""Attention over KV slots as an operation of a decoding step; see attention.c."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from skynet.architecture.window import Chunk, Window
from skynet.kernels.steps import (
    NORMS,
    Float,
    NormWeights,
    Number,
    Places,
    Pointer,
    Program,
    address,
)

KV_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
MAX_HEAD_DIM = 512


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("cache", "scales", "norm_weight", "norm_bias")),
        *((name, Pointer) for name in ("sinks", "bias", "query_factors")),
        *((name, Number) for name in ("kind", "heads", "kv_heads", "head_dim", "slot_tokens")),
        *(
            (name, Number)
            for name in ("window", "chunk", "rope", "rotary_dims", "gated", "crossed")
        ),
        *((name, Number) for name in ("norm_kind", "source", "target")),
        *((name, Float) for name in ("norm_eps", "scale", "cap", "clip")),
    )


@dataclass(frozen=True)
class HeadLayout:
    """Attention of one shard's heads, from queries, keys and values side by side.

    rope: the number of the model's rope; None: none.
    biased: by the bias of the stack, see `StepKernels`.
    gated: the heads' gates are beside queries, keys and values.
    crossed: queries alone, over all of a row's encoder KV.
    clip: of queries, keys and values.
    sinks: (heads,) float32: a further score of each head, of a key without a value.
    query_factors: (slot_tokens,) float32: what queries are multiplied by, by their position.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: Window = None
    rope: int | None = None
    rotary_dims: int = 0
    cap: float | None = None
    norm: NormWeights | None = None
    biased: bool = False
    gated: bool = False
    crossed: bool = False
    clip: float | None = None
    sinks: torch.Tensor | None = None
    query_factors: torch.Tensor | None = None


def emit_attention(
    program: Program,
    layout: HeadLayout,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    places: Places,
) -> bool:
    """Changes of heads, store and attention; queries, keys and values are side by side.

    cache: (slots, K and then V heads, tokens, head_dim); scales: the same but head_dim.
    """
    kind = KV_DTYPES.get(cache.dtype)
    bias = program.bias if layout.biased else None
    if kind is None or layout.head_dim > MAX_HEAD_DIM or not layout.heads:
        return False
    if layout.biased and bias is None:
        return False
    if layout.crossed:
        program.cross()
    norm, window = layout.norm, layout.window
    arguments = _Attention(
        cache.data_ptr(),
        address(scales),
        *((None, None) if norm is None else (address(norm.weight), address(norm.bias))),
        *(address(layout.sinks), address(bias), address(layout.query_factors)),
        *(kind, layout.heads, layout.kv_heads, layout.head_dim, cache.shape[2]),
        *((0, window.size) if isinstance(window, Chunk) else (window or 0, 0)),
        *(-1 if layout.rope is None else layout.rope, layout.rotary_dims, layout.gated),
        layout.crossed,
        *(0 if norm is None else NORMS.index(norm.kind), *places),
        *(0 if norm is None else norm.eps, layout.scale, layout.cap or 0, layout.clip or 0),
    )
    target = places[1]
    width = layout.heads * layout.head_dim
    return program.append("attention", arguments, target, width, layout, cache, scales, bias)
