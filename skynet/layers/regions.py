"""The regions of the checkpoint's tensors that one shard has: by unit, fused part and orientation.

Knows which region of a tensor to ask for, not where tensors lie: that is `Fetch`.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch

from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.stored import offset
from skynet.errors import CheckpointError, PlanError
from skynet.layers.heads import GroupedRows, interleave
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.units import units
from skynet.wire.blocks import BlockFormat

ROTARY_ROLES = ("q", "k", "q_norm", "k_norm")


class Fetch(Protocol):
    """Returns a region of a staged tensor along the axis it is cut in, whole in the other one."""

    def __call__(self, name: str, region: Range) -> torch.Tensor: ...


def groups_of(units: Range, form: BlockFormat, weight: Weight) -> Range:
    """Inputs of a quantised weight as groups.

    Raises:
        PlanError: a group would be divided.
    """
    if units.start % form.group or units.stop % form.group:
        raise PlanError(
            f"{weight.name}: a shard's inputs [{units.start}, {units.stop}) divide a group of "
            f"{form.group}: the plan was made by another version; split the model again"
        )
    return Range(units.start // form.group, units.stop // form.group)


class ShardRegions:
    """Cuts one shard's part out of each tensor of a stack."""

    def __init__(self, arch: Architecture, part: ShardPlan, fetch: Fetch) -> None:
        self.arch, self.part, self.fetch = arch, part, fetch
        self._grouped = GroupedRows(arch, part)

    def weight(self, role: str) -> Weight:
        """The weight of this role.

        Raises:
            CheckpointError: the model has none.
        """
        weight = self.arch.weight(role)
        if weight is None:
            raise CheckpointError(f"{self.arch.model_type} has no weight {role!r}")
        return weight

    def layer_number(self, layer: int | None) -> int | None:
        """The layer's number among those of all stacks."""
        return None if layer is None else self.arch.encoder_layers + layer

    def units(self, weight: Weight) -> Range:
        """The shard's part of the dimension the weight is cut in, before fusing."""
        return units(self.arch, self.part, weight)

    def matrix_shape(self, weight: Weight) -> tuple[int, int]:
        """(out, in) of the shard's part."""
        size, inputs = self.units(weight).size, self.arch.inputs(weight)
        if weight.cut == "row":
            return (self.arch.shape(weight)[0], size)
        return (size, inputs or 1)

    def read(
        self, weight: Weight, name: str, units: Range, layer: int | None = None, group: int = 1
    ) -> torch.Tensor:
        """The region of tensor `name` that has these units, as the tensor is stored.

        group: inputs in a unit, if these are groups.
        """
        if weight.by_group:
            fetch = partial(self.fetch, name)
            if units == self.units(weight):
                return self._grouped.all_of(weight, name, fetch)
            return self._grouped.some_of(weight, units, fetch)
        start = offset(self.arch, weight, layer) // group
        return self.fetch(name, Range(units.start + start, units.stop + start))

    def copy(self, weight: Weight, raw: torch.Tensor, out: torch.Tensor, layer: int | None) -> None:
        """Copy `raw` to `out`, the rows of rotary roles so that rotated pairs are adjacent.

        Raises:
            CheckpointError: the shapes differ.
        """
        if raw.shape != out.shape:
            raise CheckpointError(
                f"{weight.name} ({weight.role}): fetched {tuple(raw.shape)}, expected "
                f"{tuple(out.shape)}"
            )
        rope = None if layer is None else self.arch.ropes[layer]
        if rope is not None and not rope.adjacent and weight.rotated_from is not None:
            interleave(raw, out, self.arch.item_size(weight.unit), rope.dims, weight.rotated_from)
        elif rope is not None and not rope.adjacent and weight.role in ROTARY_ROLES:
            interleave(raw, out, self.arch.head_dim, rope.dims)
        else:
            out.copy_(raw)

    def forget(self) -> None:
        """Free the fused tensor that was read last: no other role of it will be asked for."""
        self._grouped.forget()
