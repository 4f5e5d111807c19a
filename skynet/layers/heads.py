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
    """Tensors that hold, for each KV head, its query heads, its key and its value."""

    def __init__(self, arch: Architecture, part: ShardPlan) -> None:
        self._group, self._head_dim, self._part = arch.group, arch.head_dim, part
        self._last: tuple[str, torch.Tensor] | None = None  # name, and rows of all roles

    def all_of(self, weight: Weight, name: str, fetch: FetchRows) -> torch.Tensor:
        """The rows of the shard's heads of one role.

        The first call for a tensor fetches the rows of all roles, in as few runs as possible.
        """
        heads = sorted(head for role in weight.fused for head in self._heads(role))
        if self._last is None or self._last[0] != name:
            raw = [fetch(run) for run in _runs(heads, self._head_dim)]
            self._last = name, torch.cat(raw)
        of_role = [heads.index(head) for head in self._heads(weight.role)]
        return self._last[1].unflatten(0, (-1, self._head_dim))[of_role].flatten(0, 1)

    def some_of(self, weight: Weight, rows: Range, fetch: FetchRows) -> torch.Tensor:
        """Rows of some heads of one role, numbered as in an unfused tensor of that role."""
        heads = Range(rows.start // self._head_dim, rows.stop // self._head_dim)
        fused = self._heads(weight.role, heads)
        return torch.cat([fetch(run) for run in _runs(fused, self._head_dim)])

    def forget(self) -> None:
        """Free the tensor that was fetched last."""
        self._last = None

    def _heads(self, role: str, heads: Range | None = None) -> list[int]:
        """The numbers in the fused tensor of a role's heads, by default those of the shard."""
        group = self._group
        if role == "q":
            heads = heads or self._part.heads
            numbers = range(heads.start, heads.stop)
            return [head // group * (group + 2) + head % group for head in numbers]
        heads = heads or self._part.kv_heads
        after = group if role == "k" else group + 1
        return [kv * (group + 2) + after for kv in range(heads.start, heads.stop)]


def _runs(heads: list[int], size: int) -> list[Range]:
    """The rows of each run of consecutive numbers in a sorted list; a head has `size` rows."""
    starts = [0] + [at for at, (a, b) in enumerate(pairwise(heads), 1) if b != a + 1]
    stops = [*starts[1:], len(heads)]
    return [
        Range(heads[a] * size, (heads[b - 1] + 1) * size)
        for a, b in zip(starts, stops, strict=True)
    ]


def interleave(raw: torch.Tensor, out: torch.Tensor, head_dim: int, dims: int) -> None:
    """Copy rows (heads x head_dim, ...) so that the two rows of a rotated pair are adjacent.

    In checkpoints the first rows of all pairs of a head come before the second ones, within the
    `dims` rows that are rotated.
    """
    half = dims // 2
    source, target = raw.unflatten(0, (-1, head_dim)), out.unflatten(0, (-1, head_dim))
    pairs = source[:, :dims].unflatten(1, (2, half)).transpose(1, 2)  # (heads, half, 2, ...)
    target[:, :dims].unflatten(1, (half, 2)).copy_(pairs)
    target[:, dims:].copy_(source[:, dims:])


def half_by_half(heads: torch.Tensor, dims: int) -> torch.Tensor:
    """The opposite of `interleave` for the numbers of heads, (..., head_dim); a copy."""
    pairs = heads[..., :dims].unflatten(-1, (-1, 2)).transpose(-1, -2)
    return torch.cat([pairs.flatten(-2), heads[..., dims:]], dim=-1)
