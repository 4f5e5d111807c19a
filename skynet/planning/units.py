"""A shard's part of each dimension of a model, and of a layer that differs from others. Pure."""

from __future__ import annotations

from dataclasses import replace

from skynet.architecture.architecture import Architecture
from skynet.architecture.quantisable import COLUMN_UNIT
from skynet.architecture.weight import Unit, Weight
from skynet.planning.expert_cut import is_of_expert
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range


def units(arch: Architecture, part: ShardPlan, weight: Weight) -> Range:
    """The shard's part of the dimension that a weight is cut in, before fusing; all of an uncut
    one.

    part: of this architecture; see `part_of_kind`.
    """
    if weight.cut == "replicated":
        return Range(0, arch.outputs(weight))
    if part.experts is not None and is_of_expert(weight):
        return Range(0, arch.size(weight.unit))
    items, size = items_of(arch, part, weight.unit), arch.item_size(weight.unit)
    return Range(items.start * size, items.stop * size)


def pieces_of(arch: Architecture, part: ShardPlan, weight: Weight) -> Range:
    """The pieces of a weight of which the shard has anything: its experts, if it has them whole."""
    if part.experts is not None and is_of_expert(weight):
        return part.experts
    return Range(0, arch.pieces(weight))


def adds_biases(arch: Architecture, part: ShardPlan, weight: Weight) -> bool:
    """Whether the shard adds the biases of all pieces of a row-parallel weight: the first does."""
    own = part.experts if part.experts is not None else units(arch, part, weight)
    return own.size > 0 and own.start == 0


def items_of(arch: Architecture, part: ShardPlan, unit: Unit) -> Range:
    """The shard's items of a dimension that shards divide: heads, columns, tokens, `arch.dims`."""
    own = {
        "heads": part.heads,
        "kv_heads": part.kv_heads,
        "columns": part.columns,
        "vocab": part.vocab,
    }
    if unit in own:
        return own[unit]
    dim = arch.dims[unit]
    if dim.serves:
        served = items_of(arch, part, dim.serves)
        return _serving(served, arch.size(dim.serves) // arch.item_size(dim.serves) // dim.count)
    return _scaled(
        part.columns, arch.intermediate_size, dim.count, _step(arch, dim.count, dim.size)
    )


def part_of_kind(arch: Architecture, kind: Architecture, part: ShardPlan) -> ShardPlan:
    """The shard's part of the layers of a kind, which may have other heads and columns."""
    if kind is arch:
        return part
    heads = _scaled(part.heads, arch.num_heads, kind.num_heads)
    total = kind.intermediate_size
    return replace(
        part,
        heads=heads,
        kv_heads=_serving(heads, kind.group),
        columns=_scaled(part.columns, arch.intermediate_size, total, _step(kind, total, 1)),
    )


def _step(arch: Architecture, total: int, size: int) -> int:
    """Single columns of quantised models are cut in groups."""
    return COLUMN_UNIT if arch.formats and size == 1 and total % COLUMN_UNIT == 0 else 1


def _scaled(part: Range, total: int, new_total: int, step: int = 1) -> Range:
    """The same share of another total, at multiples of `step`.

    Equal borders stay equal, so that the shards' parts of the other total are without gaps, too.
    """
    if total == new_total:
        return part

    def scaled(border: int) -> int:
        return (2 * border * (new_total // step) + total) // (2 * total) * step

    return Range(scaled(part.start), scaled(part.stop))


def _serving(served: Range, group: int) -> Range:
    """The items that serve `group` items of another dimension each."""
    if not served.size:
        return Range(0, 0)
    return Range(served.start // group, -(-served.stop // group))
