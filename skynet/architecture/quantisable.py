"""Which matrices may be quantised, and in what groups: the one rule.

Quantised are the matrices that shards divide: products, embedding and head; and of those that every
shard has whole the ones marked as products. Norms, biases, routers, tables of positions and types,
and other small matrices stay numbers, and so does a matrix that cannot be cut at borders of groups.
"""

from __future__ import annotations

from math import gcd

from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.stored import matrix_shape
from skynet.architecture.tensors import stored_weights
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.wire.blocks import GROUP_UNIT, BlockFormat, ScaleDtype
from skynet.wire.quantised import GROUP, Layout

COLUMN_UNIT = 32  # planning cuts single columns of quantised models at multiples


def quantised(arch: Architecture, layout: Layout) -> Architecture:
    """The same model with all matrices quantised that may be."""
    formats = {
        tensor: form
        for stack, weight, tensor in stored_weights(arch)
        if (form := format_of(stack, weight, layout)) is not None
    }
    return arch.quantised(formats)


def format_of(
    arch: Architecture,
    weight: Weight,
    layout: Layout,
    group: int = GROUP,
    scale_dtype: ScaleDtype = "float16",
) -> BlockFormat | None:
    """The format in which a weight is staged; None where it stays numbers.

    group: of the source. A smaller one is chosen where inputs are cut elsewhere: at borders of
    heads, or of `COLUMN_UNIT` columns. It is a multiple of `GROUP_UNIT`, or there is none.
    """
    is_cut = weight.cut != "replicated" or weight.product
    is_matrix = is_cut and len(arch.shape(weight)) == 2
    if isinstance(arch, TransformersArchitecture) or not is_matrix or weight.float32:
        return None
    size = gcd(group, matrix_shape(arch, weight)[1], arch.shape(weight)[1])
    if weight.cut == "row":
        item = arch.item_size(weight.unit)
        size = gcd(size, COLUMN_UNIT if item == 1 else item)
    return None if size % GROUP_UNIT else BlockFormat(layout, size, scale_dtype)
