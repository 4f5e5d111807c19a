"""A shard's part of the weights of a model on the Transformers backend: ranges and bytes. Pure."""

from __future__ import annotations

from math import prod

from skynet.architecture.transformers_model import TransformersArchitecture, TransformersWeight
from skynet.architecture.weight import Weight
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range

FLOAT_BYTES = 4  # of biases added after a sum, and of parameters that stay float32


def units(arch: TransformersArchitecture, part: ShardPlan, weight: Weight) -> Range:
    """The shard's part of the dimension that a weight is cut in; all of an uncut weight."""
    total = arch.shape(weight)[1 if weight.cut == "row" else 0]
    if weight.unit in ("heads", "kv_heads"):
        heads = part.heads if weight.unit == "heads" else part.kv_heads
        return Range(heads.start * arch.head_dim, heads.stop * arch.head_dim)
    if weight.unit == "columns":
        # In proportion: a tensor may have more or fewer columns than the MLP.
        columns = arch.intermediate_size
        return Range(part.columns.start * total // columns, part.columns.stop * total // columns)
    return part.vocab if weight.unit == "vocab" else Range(0, total)


def role_bytes(
    arch: TransformersArchitecture,
    part: ShardPlan,
    weight: TransformersWeight,
    item_bytes: float,
    weight_bytes: float,
) -> float:
    """The memory of a weight and its bias on a shard, with so many bytes per number."""
    if weight.float32:
        item_bytes = weight_bytes = FLOAT_BYTES
    shape, width = arch.shape(weight), units(arch, part, weight).size
    total = prod(shape) // max(1, shape[1 if weight.cut == "row" else 0]) * width * weight_bytes
    total *= arch.pieces(weight)
    if not weight.bias:
        return total
    return total + (shape[0] * FLOAT_BYTES if weight.cut == "row" else width * item_bytes)
