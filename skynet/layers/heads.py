"""The order of heads, and of the numbers of a head, in the checkpoint's tensors and in SkyNet's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch

from skynet.architecture.architecture import Architecture, Weight
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.units import units

FetchRows = Callable[[Range], torch.Tensor]


class GroupedRows:
    """Tensors that hold, for each group of items, the rows of one role after the other's."""

    def __init__(self, arch: Architecture, part: ShardPlan) -> None:
        self._arch, self._part = arch, part
        self._last: tuple[str, torch.Tensor] | None = None  # name, and rows of all roles

    def all_of(self, weight: Weight, name: str, fetch: FetchRows) -> torch.Tensor:
        """The rows of the shard's items of one role.

        The first call for a tensor fetches the rows of all roles, in as few runs as possible.
        """
        every = sorted(part for role in weight.fused for part in self._parts(weight, role))
        if self._last is None or self._last[0] != name:
            self._last = name, torch.cat([fetch(run) for run in _runs(every)])
        ends = accumulate(part.size for part in every)
        starts = {part: end - part.size for part, end in zip(every, ends, strict=True)}
        parts = self._parts(weight, weight.role)
        return torch.cat([self._last[1].narrow(0, starts[part], part.size) for part in parts])

    def some_of(self, weight: Weight, rows: Range, fetch: FetchRows) -> torch.Tensor:
        """Some rows of one role, numbered as in an unfused tensor of that role."""
        return torch.cat([fetch(run) for run in _runs(self._parts(weight, weight.role, rows))])

    def forget(self) -> None:
        """Free the tensor that was fetched last."""
        self._last = None

    def _parts(self, weight: Weight, role: str, rows: Range | None = None) -> list[Range]:
        """Where the fused tensor has a role's rows, by group; by default those of the shard."""
        arch, groups = self._arch, weight.groups or self._arch.num_kv_heads
        roles = [arch.weight(each) for each in weight.fused]
        sizes = [arch.size(each.unit) // groups for each in roles if each is not None]
        index = weight.fused.index(role)
        size, before = sizes[index], sum(sizes[:index])
        rows = rows or units(arch, self._part, roles[index] or weight)
        parts = []
        for group in range(rows.start // size, -(-rows.stop // size)):
            part = rows.overlap(Range(group * size, (group + 1) * size))
            shift = group * (sum(sizes) - size) + before
            parts.append(Range(part.start + shift, part.stop + shift))
        return parts


def _runs(parts: list[Range]) -> list[Range]:
    """Adjacent ones of sorted ranges joined."""
    runs: list[Range] = []
    for part in parts:
        if runs and runs[-1].stop == part.start:
            runs[-1] = Range(runs[-1].start, part.stop)
        else:
            runs.append(part)
    return runs


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


def half_by_half(heads: torch.Tensor, dims: int) -> torch.Tensor:
    """The opposite of `interleave` for the numbers of heads, (..., head_dim); a copy."""
    pairs = heads[..., :dims].unflatten(-1, (-1, 2)).transpose(-1, -2)
    return torch.cat([pairs.flatten(-2), heads[..., dims:]], dim=-1)
