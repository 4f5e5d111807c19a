"""Where the heads of a shard lie in the checkpoint's tensors, and in ours."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from skynet.architecture.architecture import Architecture, Weight
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range

FetchRows = Callable[[Range], torch.Tensor]


class GroupedHeads:
    """Heads of tensors that hold, for each KV head, its query heads, its key and its value."""

    def __init__(self, arch: Architecture, part: ShardPlan) -> None:
        self._group, self._head_dim, self._part = arch.group, arch.head_dim, part
        self._last: tuple[str, torch.Tensor] | None = None  # a tensor's parts of all roles

    def all_of(self, weight: Weight, name: str, fetch: FetchRows) -> torch.Tensor:
        """The rows of the shard's heads of one role.

        The parts of all roles are fetched with the first, in as few runs as they lie in.
        """
        heads = sorted(place for role in weight.fused for place in self._places(role))
        if self._last is None or self._last[0] != name:
            raw = [fetch(run) for run in _runs(heads, self._head_dim)]
            self._last = name, torch.cat(raw)
        wanted = [heads.index(place) for place in self._places(weight.role)]
        return self._last[1].unflatten(0, (-1, self._head_dim))[wanted].flatten(0, 1)

    def some_of(self, weight: Weight, rows: Range, fetch: FetchRows) -> torch.Tensor:
        """Rows of some heads of one role, numbered as if the role had a tensor of its own."""
        heads = Range(rows.start // self._head_dim, rows.stop // self._head_dim)
        places = self._places(weight.role, heads)
        return torch.cat([fetch(run) for run in _runs(places, self._head_dim)])

    def forget(self) -> None:
        """No more roles of the last tensor are needed."""
        self._last = None

    def _places(self, role: str, heads: Range | None = None) -> list[int]:
        """Where heads of a role, by default the shard's, stand among all heads of the tensor."""
        group = self._group
        if role == "q":
            heads = heads or self._part.heads
            numbers = range(heads.start, heads.stop)
            return [head // group * (group + 2) + head % group for head in numbers]
        heads = heads or self._part.kv_heads
        after = group if role == "k" else group + 1
        return [kv * (group + 2) + after for kv in range(heads.start, heads.stop)]


def _runs(places: list[int], size: int) -> list[Range]:
    """Runs of neighbours in a sorted list, each `size` rows high, in rows."""
    starts = [0] + [at for at, (a, b) in enumerate(pairwise(places), 1) if b != a + 1]
    stops = [*starts[1:], len(places)]
    return [
        Range(places[a] * size, (places[b - 1] + 1) * size)
        for a, b in zip(starts, stops, strict=True)
    ]


def interleave(raw: torch.Tensor, out: torch.Tensor, head_dim: int, dims: int) -> None:
    """Copy rows (heads x head_dim, ...) so that those rope turns together are neighbours.

    Checkpoints have the first halves of all pairs of a head, then the second halves, both within
    the `dims` rows that are turned at all.
    """
    half = dims // 2
    given, made = raw.unflatten(0, (-1, head_dim)), out.unflatten(0, (-1, head_dim))
    pairs = given[:, :dims].unflatten(1, (2, half)).transpose(1, 2)  # (heads, half, 2, ...)
    made[:, :dims].unflatten(1, (half, 2)).copy_(pairs)
    made[:, dims:].copy_(given[:, dims:])
