"""The order of heads, and of the numbers of a head, in the checkpoint's tensors and in SkyNet's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from skynet.architecture.architecture import Architecture, Weight
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range

FetchRows = Callable[[Range], torch.Tensor]


class GroupedHeads:
    """Tensors that hold, for each group of heads, its queries, its keys and its values."""

    def __init__(self, arch: Architecture, part: ShardPlan) -> None:
        self._head_dim, self._part = arch.head_dim, part
        self._counts = {"q": arch.num_heads, "k": arch.num_kv_heads, "v": arch.num_kv_heads}
        self._last: tuple[str, torch.Tensor] | None = None  # name, and rows of all roles

    def all_of(self, weight: Weight, name: str, fetch: FetchRows) -> torch.Tensor:
        """The rows of the shard's heads of one role.

        The first call for a tensor fetches the rows of all roles, in as few runs as possible.
        """
        heads = sorted(head for role in weight.fused for head in self._heads(weight, role))
        if self._last is None or self._last[0] != name:
            raw = [fetch(run) for run in _runs(heads, self._head_dim)]
            self._last = name, torch.cat(raw)
        of_role = [heads.index(head) for head in self._heads(weight, weight.role)]
        return self._last[1].unflatten(0, (-1, self._head_dim))[of_role].flatten(0, 1)

    def some_of(self, weight: Weight, rows: Range, fetch: FetchRows) -> torch.Tensor:
        """Rows of some heads of one role, numbered as in an unfused tensor of that role."""
        heads = Range(rows.start // self._head_dim, rows.stop // self._head_dim)
        fused = self._heads(weight, weight.role, heads)
        return torch.cat([fetch(run) for run in _runs(fused, self._head_dim)])

    def forget(self) -> None:
        """Free the tensor that was fetched last."""
        self._last = None

    def _heads(self, weight: Weight, role: str, heads: Range | None = None) -> list[int]:
        """The numbers in the fused tensor of a role's heads, by default those of the shard."""
        groups = weight.groups or self._counts["k"]
        sizes = [self._counts[each] // groups for each in weight.fused]
        index = weight.fused.index(role)
        size, before = sizes[index], sum(sizes[:index])
        heads = heads or (self._part.heads if role == "q" else self._part.kv_heads)
        return [
            head // size * sum(sizes) + before + head % size
            for head in range(heads.start, heads.stop)
        ]


def _runs(heads: list[int], size: int) -> list[Range]:
    """The rows of each run of consecutive numbers in a sorted list; a head has `size` rows."""
    starts = [0] + [at for at, (a, b) in enumerate(pairwise(heads), 1) if b != a + 1]
    stops = [*starts[1:], len(heads)]
    return [
        Range(heads[a] * size, (heads[b - 1] + 1) * size)
        for a, b in zip(starts, stops, strict=True)
    ]


def interleave(
    raw: torch.Tensor, out: torch.Tensor, head_dim: int, dims: int, first: int = 0
) -> None:
    """Copy rows (heads x head_dim, ...) so that the two rows of a rotated pair are adjacent.

    In checkpoints the first rows of all pairs of a head come before the second ones, within the
    `dims` rows from `first` that are rotated.
    """
    half, stop = dims // 2, first + dims
    source, target = raw.unflatten(0, (-1, head_dim)), out.unflatten(0, (-1, head_dim))
    pairs = source[:, first:stop].unflatten(1, (2, half)).transpose(1, 2)  # (heads, half, 2, ...)
    target[:, first:stop].unflatten(1, (half, 2)).copy_(pairs)
    target[:, :first].copy_(source[:, :first])
    target[:, stop:].copy_(source[:, stop:])
