"""A weight as data: its role, its tensors in the checkpoint, and how it is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from skynet.architecture.packed import Packed

Cut = Literal["column", "row", "vocab", "replicated"]
# What a dimension counts: "heads", "kv_heads", "columns", "vocab", "positions", "experts",
# "hidden", "head_dim", "embed", "types", "labels", "buckets",
# "distances", or a key of `Architecture.dims`.
Unit = str
HEAD_NORMS = ("q_norm", "k_norm")
MLP_OUTPUTS, CROSS_OUTPUT = ("down", "shared_down"), "cross_o"
# Of per-layer inputs, after the MLP: a product, and a table of tokens.
INPUT_OUTPUT, INPUT_TABLE = "input_o", "input_table"
# Replicated matrices, with the hidden size as inputs; other replicated weights are vectors.
MATRICES = ("project_out", "head_dense", "label_dense")


@dataclass(frozen=True)
class Dim:
    """A dimension besides heads and columns: shards divide it in whole items, in proportion to
    their columns.

    size: elements of an item.
    serves: another unit with a multiple of the items; a shard has the items that serve its own of
        that unit, as KV heads serve query heads.
    """

    count: int
    size: int = 1
    serves: Unit = ""


@dataclass(frozen=True)
class Weight:
    """One logical matrix or vector, and its tensors in the checkpoint.

    `name` is the checkpoint's, without `.weight` or `.bias`; `{layer}` stands for the layer's
    number, `{piece}` for that of an expert or a head, where each is a separate tensor.
    `unit` is what the cut dimension counts, or the length of a replicated vector.
    """

    role: str
    name: str
    cut: Cut
    unit: Unit
    bias: bool = False
    transposed: bool = False  # stored [in, out], as Conv1D does
    fused: tuple[str, ...] = ()  # roles that share the tensor, in order along its out axis
    # The fused tensor has the items of a group, role by role, and so on for each group: not all
    # queries before all keys. A group is a KV head with its queries, or one of `groups` equal ones.
    by_group: bool = False
    groups: int | None = None
    by_head: bool = False  # a vector for each head, stored as (heads, head_dim)
    bias_only: bool = False  # the tensor is a `.bias` that has no `.weight` beside it
    bare: bool = False  # the tensor is called `name` as it is
    as_row: bool = False  # a vector stored as (1, size), under `name` as it is
    # Of a tensor that layers have without `{layer}` in its name: "parts", one of each layer in
    # order along the axis that is cut (the first, if it is replicated), or "same" for all.
    of_layers: Literal["", "parts", "same"] = ""
    first_layer: int = 0  # earlier layers do not have the weight
    # The dimensions after the first, (): none, a vector; None: as `Architecture.inputs` says. Of a
    # row-parallel weight the outputs.
    inner: tuple[int, ...] | None = None
    float32: bool = False  # small: stays in float32, and is not quantised
    scale: float = 1.0  # of a product: its outputs, with the bias, are multiplied by this
    product: bool = False  # replicated, and otherwise like a column-parallel weight
    # Of each item of the unit, the first number that the rope rotates, in other roles than Q and K.
    rotated_from: int | None = None
    others: tuple[str, ...] = ()  # other names that the tensor may have in a file
    optional: bool = False  # a file may lack it: see `Architecture.lacking`
    packed: Packed | None = None  # a file may have the weights of all experts in one tensor

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.name or bool(self.of_layers)

    @property
    def in_pieces(self) -> bool:
        return "{piece}" in self.name

    def tensor(
        self, layer: int | None = None, kind: str = "weight", piece: int | None = None
    ) -> str:
        """The checkpoint's name of the weight or bias: `model.layers.3.mlp.up_proj.weight`."""
        if self.as_row or self.bare:
            return self.name.format(layer=layer, piece=piece)
        kind = "bias" if self.bias_only else kind
        return f"{self.name.format(layer=layer, piece=piece)}.{kind}"

    def other_tensors(self, layer: int | None = None) -> tuple[str, ...]:
        """The other names that the tensor may have in a file."""
        return tuple(replace(self, name=other).tensor(layer) for other in self.others)

    def is_in(self, layer: int | None) -> bool:
        """Whether this layer has the weight."""
        return layer is None or layer >= self.first_layer
