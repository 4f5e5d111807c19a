"""How weights are stored in a checkpoint: fused, transposed, in pieces, with an offset.

Quantised matrices are (out, groups, block), never transposed.
"""

from __future__ import annotations

from skynet.architecture.architecture import HEAD_NORMS, Architecture, Weight
from skynet.wire.blocks import BlockFormat


def stored_shape(
    arch: Architecture, weight: Weight, form: BlockFormat | None = None
) -> tuple[int, ...]:
    """The shape of the tensor, all fused parts together, or of one of its pieces."""
    shape = (_stored_outputs(arch, weight), *arch.shape(weight)[1:])
    if weight.of_layers == "parts":
        axis = stored_axis(weight)
        shape = (*shape[:axis], shape[axis] * arch.num_layers, *shape[axis + 1 :])
    if form is not None:
        return form.shape(*matrix_shape(arch, weight))
    if weight.role in HEAD_NORMS and weight.in_pieces:
        return (arch.head_dim,)
    if weight.by_head:
        return (shape[0] // arch.head_dim, arch.head_dim)
    if weight.as_row:
        return (1, *shape)
    return shape[::-1] if weight.transposed else shape


def matrix_shape(arch: Architecture, weight: Weight) -> tuple[int, int]:
    """(out, in) of a matrix, all fused parts together, however it is stored."""
    (inputs,) = arch.shape(weight)[1:]
    if weight.of_layers == "parts" and weight.cut == "row":
        inputs *= arch.num_layers
    return _stored_outputs(arch, weight), inputs


def stored_axis(weight: Weight, form: BlockFormat | None = None) -> int:
    """The axis that the tensor is cut along."""
    is_row = weight.cut == "row"
    if form is not None:
        return int(is_row)
    return int(weight.as_row or is_row != weight.transposed)


def stored_bias(arch: Architecture, weight: Weight) -> int:
    """The size of the bias, all fused parts together."""
    return _stored_outputs(arch, weight) if weight.fused else arch.bias_size(weight)


def offset(arch: Architecture, weight: Weight, layer: int | None = None) -> int:
    """Where the weight's part starts in its tensor, which may be fused end to end."""
    if weight.of_layers == "parts":
        return arch.outputs(weight) * (layer or 0)
    if weight.unit == "positions":
        return arch.position_offset
    before = weight.fused[: weight.fused.index(weight.role)] if weight.fused else ()
    return sum(_fused_size(arch, role) for role in before)


def _stored_outputs(arch: Architecture, weight: Weight) -> int:
    if weight.fused:
        return sum(_fused_size(arch, role) for role in weight.fused)
    return arch.shape(weight)[0] + (offset(arch, weight) if weight.unit == "positions" else 0)


def _fused_size(arch: Architecture, role: str) -> int:
    part = arch.weight(role)
    if part is None:
        raise KeyError(f"{arch.model_type} has no {role!r} to fuse")
    return arch.size(part.unit)
