"""Disentangled attention (He et al., 2021, arXiv:2006.03654): scores of contents and distances.

The vectors of distances are the same for every text, so each layer makes their queries and keys
once, when it is loaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skynet.architecture.positions import Disentangled
from skynet.layers.linear import Linear
from skynet.layers.norm import load_norm
from skynet.layers.weights import Loader

MAX_SCORES = 2**22  # of one kernel call: 16 MiB, and some times that while they are made


class Distances:
    """The queries and keys of distances of one layer, for a shard's heads."""

    def __init__(
        self, kind: Disentangled, queries: torch.Tensor | None, keys: torch.Tensor | None
    ) -> None:
        """queries, keys: (heads, head_dim, rows of the table), None where they meet nothing."""
        self._kind, self._queries, self._keys = kind, queries, keys
        self.nbytes = sum(part.nbytes for part in (queries, keys) if part is not None)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """All (texts, heads, length, head_dim), the result too."""
        _, heads, length, _ = query.shape
        rows = _rows(length, self._kind).to(query.device)
        texts = max(1, MAX_SCORES // (heads * length * length))
        parts = zip(query.split(texts), key.split(texts), value.split(texts), strict=True)
        mixed = []
        for q, k, v in parts:
            bias = self._bias(q, k, rows) * scale
            mixed.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale))
        return torch.cat(mixed)

    def _bias(self, query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(texts, heads, length, length), unscaled; rows: (queries, keys) of the table."""
        shape = (*query.shape[:2], *rows.shape)
        bias = query.new_zeros(shape)
        if self._keys is not None:
            bias += (query @ self._keys).gather(3, rows.expand(shape))
        if self._queries is not None:
            by_key = (key @ self._queries).gather(3, rows.t().expand(shape))
            bias += by_key.transpose(2, 3)
        return bias


def _rows(length: int, kind: Disentangled) -> torch.Tensor:
    """(length, length) int64: the row of each query's distance from each key."""
    places = torch.arange(length)
    distances = places[:, None] - places
    if kind.max_distance is not None:
        distances = _buckets(distances, kind.span, kind.max_distance)
    return (distances + kind.span).clamp(0, 2 * kind.span - 1)


def _buckets(distances: torch.Tensor, span: int, max_distance: int) -> torch.Tensor:
    """Distances up to half of the span as they are, further ones in logarithmic buckets."""
    exact = span // 2
    far = distances.abs().clamp(min=exact) / exact
    growth = torch.log(far) / torch.log(torch.tensor((max_distance - 1) / exact))
    wide = torch.ceil(growth * (exact - 1)).long() + exact
    return torch.where(distances.abs() <= exact, distances, wide * distances.sign())


def load_distances(load: Loader, qkv: Linear, layer: int) -> Distances | None:
    """Those of a layer, whose products are `qkv`; None where the model has none."""
    kind, part, head_dim = load.arch.disentangled, load.part, load.arch.head_dim
    if kind is None:
        return None
    table = load.float32.matrix("distances")
    made = qkv(load_norm(load, "distances_norm")(table))
    heads = made.unflatten(1, (-1, head_dim)).permute(1, 2, 0)  # (heads, head_dim, rows)
    queries, keys, _ = heads.split([part.heads.size, part.kv_heads.size, part.kv_heads.size])
    return Distances(
        kind,
        queries.contiguous() if kind.to_queries else None,
        keys.contiguous() if kind.to_keys else None,
    )


def distance_table_bytes(load: Loader) -> int:
    """Of the table and its norm, which stay loaded for the next slice."""
    norm = load_norm(load, "distances_norm")
    return load.float32.matrix("distances").nbytes + norm.nbytes
