"""What a model is, as data: its sizes, its variants, and how each of its weights is cut.

A family (llama.py, gpt2.py, ...) makes one `Architecture` from a config; staging, planning and
layers read it and know no family by name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, Self

from skynet.architecture.positions import Alibi, Relative, Rope, Sinusoids

Cut = Literal["column", "row", "vocab", "replicated"]
Unit = Literal[
    "heads",
    "kv_heads",
    "columns",
    "vocab",
    "positions",
    "experts",
    "hidden",
    "head_dim",
    "embed",
    "types",
    "labels",
    "buckets",
]
HEAD_NORMS = ("q_norm", "k_norm")
# Replicated, and matrices where others of their unit are vectors; all take the hidden size.
MATRICES = ("project_out", "head_dense", "label_dense")


@dataclass(frozen=True)
class Weight:
    """One logical matrix or vector and where it lies in the checkpoint.

    `name` is the checkpoint's, without `.weight` or `.bias`; `{layer}` stands for the number, and
    `{piece}` for that of an expert, or of the head, where each has a tensor of its own.
    `unit` is what the cut dimension counts (for a replicated vector: what its length is).
    """

    role: str
    name: str
    cut: Cut
    unit: Unit
    bias: bool = False
    transposed: bool = False  # stored [in, out], as Conv1D does
    fused: tuple[str, ...] = ()  # roles that share the tensor, in order along its out axis
    # The fused tensor has the query heads of a KV head, then its key, then its value, and so on
    # for each KV head: not all queries before all keys.
    by_group: bool = False
    by_head: bool = False  # a vector for each head, stored (heads, head_dim), not end to end
    bias_only: bool = False  # the tensor is a `.bias` that has no `.weight` beside it
    as_row: bool = False  # a vector stored as (1, size), under `name` as it is
    first_layer: int = 0  # layers before it have none
    others: tuple[str, ...] = ()  # names that a tied tensor may have instead in a file
    optional: bool = False  # a file may lack it: see `Architecture.lacking`

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.name

    @property
    def in_pieces(self) -> bool:
        return "{piece}" in self.name

    def tensor(
        self, layer: int | None = None, kind: str = "weight", piece: int | None = None
    ) -> str:
        """The checkpoint's name of this weight or bias: `model.layers.3.mlp.up_proj.weight`."""
        if self.as_row:
            return self.name
        kind = "bias" if self.bias_only else kind
        return f"{self.name.format(layer=layer, piece=piece)}.{kind}"

    @property
    def other_tensors(self) -> tuple[str, ...]:
        """What the checkpoint may call the tensor of a tied weight instead."""
        return tuple(replace(self, name=other).tensor() for other in self.others)

    def is_in(self, layer: int | None) -> bool:
        """Does this layer have it?"""
        return layer is None or layer >= self.first_layer


@dataclass(frozen=True)
class Architecture:
    """Everything a shard needs to know to compute its part of a decoder or an encoder.

    Which norms a layer has is told by the weights it has: `attn_norm` and `mlp_norm` come before
    attention and MLP, `attn_post_norm` and `mlp_post_norm` after, before their result is added to
    the hidden states, `attn_sum_norm` and `mlp_sum_norm` are of the hidden states after that; the
    same for `cross`, the attention to what an encoder has read.

    An encoder-decoder is its decoder, with an `encoder` inside. The layers of both are numbered
    through, the encoder's first.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int  # of an expert, where there are experts
    vocab_size: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: str  # as Transformers names it
    gated: bool
    ropes: tuple[Rope | None, ...]  # per layer
    learned_positions: bool
    # Per layer: how many last positions a token sees; where `bidirectional`, how far in either
    # direction. None: all.
    windows: tuple[int | None, ...]
    attention_scale: float
    weights: tuple[Weight, ...]
    prefixes: tuple[str, ...]  # of the base model's tensors: ours, then others that files use
    # Of queries and keys: each head for itself, or all heads of all shards together.
    qk_norm: Literal["head", "all"] | None = None
    norm_offset: float = 0.0  # added to the weights of RMS norms
    # Attention and MLP both read the layer's input, through one norm if there is no `mlp_norm`.
    parallel: bool = False
    embed_size: int | None = None  # of an embedding that is projected to the hidden size
    embed_scale: float = 1.0
    position_offset: int = 0  # rows of the position table before the first that is used
    # A token that has no position, but the first row of the table for itself; in whole texts the
    # others are counted without it. Where positions are computed, that row is zeros.
    unplaced_token: int | None = None
    residual_scale: float = 1.0  # of what attention and MLP add to the hidden states
    logit_scale: float = 1.0
    logit_cap: float | None = None  # logits become cap * tanh(logits / cap)
    attention_cap: float | None = None  # the same for attention scores
    alibi: Alibi | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    expert_weights_sum_to_one: bool = True
    token_types: int = 0  # rows of a table of which the first is added to every embedding
    bidirectional: bool = False  # an encoder: tokens see those after them too, nothing is generated
    project_after_norm: bool = False  # the embedding is projected after positions and norm
    head_activation: str = "gelu"  # after `head_dense`, before the product with the vocabulary
    labels: tuple[str, ...] = ()  # of a classifier
    label_activation: str = "tanh"  # after `label_dense`
    label_pooling: Literal["cls", "mean"] = "cls"  # what of a text the classifier reads
    label_score: Literal["softmax", "sigmoid", "none"] = "softmax"
    relative: Relative | None = None
    sinusoids: Sinusoids | None = None  # positions, where the file has no table of them
    encoder: Architecture | None = None

    @property
    def encoder_layers(self) -> int:
        """Layers before the decoder's first."""
        return 0 if self.encoder is None else self.encoder.num_layers

    @property
    def total_layers(self) -> int:
        """Of encoder and decoder together."""
        return self.encoder_layers + self.num_layers

    @property
    def stacks(self) -> tuple[Architecture, ...]:
        """The encoder if there is one, and the rest, in the order of their layers."""
        return (self,) if self.encoder is None else (self.encoder, self)

    @property
    def max_shards(self) -> int:
        """Every shard has a query head of each stack."""
        return min(stack.num_heads for stack in self.stacks)

    def lacking(self, tensors: Collection[str]) -> Self:
        """The same model from a file without these optional tensors.

        Of several weights of one role the first that is there counts. A head that the file lacks is
        the embedding.
        """
        there: dict[str, Weight] = {}
        for weight in self.weights:
            if weight.tensor(0) not in tensors:
                there.setdefault(weight.role, weight)
        encoder = None if self.encoder is None else self.encoder.lacking(tensors)
        return replace(self, weights=tuple(there.values()), encoder=encoder)

    @property
    def group(self) -> int:
        """Query heads for each KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def tied(self) -> bool:
        """Is the head the embedding?"""
        return self.weight("head") is None

    @property
    def has_head(self) -> bool:
        """Does it know which token a place may hold?"""
        return not self.bidirectional or self.weight("head_dense") is not None

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be asked of it, the files beside the weights left aside."""
        if not self.bidirectional:
            return ("generate",)
        found = {"fill-mask": self.has_head, "classify": bool(self.labels)}
        return ("embed", *(task for task, there in found.items() if there))

    @property
    def rope_switch(self) -> int:
        """Tokens beyond which a sequence turns otherwise, from its first on; 0: it never does."""
        return max((r.original_positions for r in self.rope_kinds if r.long_divisors), default=0)

    @property
    def rope_kinds(self) -> tuple[Rope, ...]:
        """The different ropes, each once, in the order of the layers that use them first."""
        return tuple(dict.fromkeys(rope for rope in self.ropes if rope is not None))

    @property
    def sums_per_layer(self) -> int:
        """How often the shards of a stage exchange partials in a layer."""
        own = (1 if self.parallel else 2) + (self.qk_norm == "all")
        return own + (self.weight("cross_o") is not None)

    def first_sum(self, layer: int) -> int:
        """The number of the first sum of a span that starts at `layer`, counted over a step.

        Number 0 is the embedding's, so layer 0 starts with that; the decoder's first with its own.
        """
        before = self.encoder_layers
        if self.encoder is not None and layer < before:
            return self.encoder.first_sum(layer)
        start = 0 if self.encoder is None else self.encoder.first_sum(before)
        return start + self.sums_per_layer * (layer - before) + (layer > before)

    def weight(self, role: str) -> Weight | None:
        """The weight of this role, None if this model has none (`head` of a tied one)."""
        for weight in self.weights:
            if weight.role == role:
                return weight
        return None

    def size(self, unit: Unit) -> int:
        """Elements along a dimension that counts `unit`."""
        sizes: dict[Unit, int] = {
            "heads": self.num_heads * self.head_dim,
            "kv_heads": self.num_kv_heads * self.head_dim,
            "columns": self.intermediate_size,
            "vocab": self.vocab_size,
            "positions": self.max_positions + (self.unplaced_token is not None),
            "experts": self.num_experts,
            "hidden": self.hidden_size,
            "head_dim": self.head_dim,
            "embed": self.embed_size or self.hidden_size,
            "types": self.token_types,
            "labels": len(self.labels),
            "buckets": self.relative.buckets if self.relative else 0,
        }
        return sizes[unit]

    def inputs(self, weight: Weight) -> int | None:
        """Inputs of a weight that is not cut along them, None of a vector."""
        if weight.role in ("embed", "head", "project_in"):
            return self.embed_size or self.hidden_size
        if weight.role in HEAD_NORMS or weight.bias_only or weight.as_row:
            return None
        if weight.role == "relative":
            return self.num_heads
        if weight.role == "token_types" or (weight.role == "positions" and self.project_after_norm):
            return self.embed_size or self.hidden_size
        is_table = weight.unit in ("positions", "experts", "labels")
        is_matrix = weight.cut != "replicated" or is_table or weight.role in MATRICES
        return self.hidden_size if is_matrix else None

    def outputs(self, weight: Weight) -> int:
        """Outputs of a weight that is not cut along its inputs; the length of a vector."""
        if weight.role == "project_out":
            return self.embed_size or self.hidden_size
        return self.size(weight.unit)

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Of the logical weight, uncut: `(out, in)`, or `(size,)` of a vector."""
        if weight.cut == "row":
            return (self.hidden_size, self.size(weight.unit))
        inputs = self.inputs(weight)
        return (self.outputs(weight),) if inputs is None else (self.outputs(weight), inputs)

    def pieces(self, weight: Weight) -> int:
        """How many tensors of the checkpoint make up this weight of one layer."""
        if not weight.in_pieces:
            return 1
        counts = {"q_norm": self.num_heads, "k_norm": self.num_kv_heads}
        return counts.get(weight.role, self.num_experts)

    def bias_size(self, weight: Weight) -> int:
        """A row-parallel product's bias is added after the sum, so it has all outputs."""
        return self.hidden_size if weight.cut == "row" else self.size(weight.unit)
