"""A model as data: its sizes, its variants, and how each of its weights is cut.

A family (llama.py, gpt2.py, ...) makes an `Architecture` from a config; staging, planning and
layers read it and know no family by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, Self

from skynet.architecture.gate import ClampedGate
from skynet.architecture.mixers import SELF_ATTENTION, Mixer
from skynet.architecture.positions import (
    Alibi,
    Disentangled,
    Relative,
    Rope,
    Sinusoids,
    Temperature,
)
from skynet.architecture.router import SOFTMAX, Router
from skynet.architecture.weight import (
    CROSS_OUTPUT,
    HEAD_NORMS,
    INPUT_OUTPUT,
    INPUT_TABLE,
    MATRICES,
    MLP_OUTPUTS,
    Dim,
    Unit,
    Weight,
)
from skynet.architecture.window import Window
from skynet.wire.blocks import BlockFormat


class Formats(dict[str, BlockFormat]):
    """The formats of quantised tensors by name. Remembers those of many pieces, which forecasts ask
    for again and again."""

    def __init__(self, formats: Mapping[str, BlockFormat]) -> None:
        super().__init__(formats)
        self._counted: dict[tuple[str, int | None, int, int], Counter[BlockFormat | None]] = {}

    def of_pieces(
        self, weight: Weight, layer: int | None, start: int, stop: int
    ) -> Counter[BlockFormat | None]:
        """How many of a weight's pieces [start, stop) have each format; None: they are numbers."""
        key = (weight.name, layer, start, stop)
        if key not in self._counted:
            names = (weight.tensor(layer, piece=piece) for piece in range(start, stop))
            self._counted[key] = Counter(map(self.get, names))
        return self._counted[key]


@dataclass(frozen=True)
class Architecture:
    """Everything that a shard needs to compute its part of a decoder or an encoder.

    The norms of a layer follow from its weights: `attn_norm` and `mlp_norm` come before attention
    and MLP; `attn_post_norm` and `mlp_post_norm` after them, before the result is added to the
    hidden states; `attn_sum_norm` and `mlp_sum_norm` after that sum. The same holds for `cross`,
    the cross-attention.

    An encoder-decoder is its decoder, with an `encoder` inside. Their layers are numbered
    together, the encoder's first.

    Where layers differ in more than windows and ropes, each kind of layer is an architecture of its
    own, with the weights and sizes of these layers: see `at`. The fields here are then those that
    plans divide by, and `weights` has those that no layer has.
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
    # Per layer: see `Window`. If `bidirectional`, how far a token sees in either direction.
    windows: tuple[Window, ...]
    attention_scale: float
    weights: tuple[Weight, ...]
    prefixes: tuple[str, ...]  # of the base model's tensors: the canonical one, then others
    # Norms of queries and keys: of each head, or of all heads of all shards together. Without
    # `q_norm` and `k_norm` they have no weights.
    qk_norm: Literal["head", "all"] | None = None
    norm_offset: float = 0.0  # added to the weights of RMS norms
    # Attention and MLP both take the layer's input, through one norm if there is no `mlp_norm`.
    parallel: bool = False
    embed_size: int | None = None  # of an embedding that is projected to the hidden size
    embed_scale: float = 1.0
    position_offset: int = 0  # unused rows at the start of the position table
    # A token without a position: it takes the first row of the table, and in whole texts the other
    # tokens are counted without it. Where positions are computed, that row is zeros.
    unplaced_token: int | None = None
    residual_scale: float = 1.0  # of what attention and MLP add to the hidden states
    logit_scale: float = 1.0
    logit_cap: float | None = None  # logits become cap * tanh(logits / cap)
    attention_cap: float | None = None  # the same for attention scores
    qkv_clip: float | None = None  # queries, keys and values are clamped to [-clip, clip]
    temperature: Temperature | None = None
    alibi: Alibi | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    router: Router = SOFTMAX
    gate: ClampedGate | None = None  # of a gated MLP, in place of act(gate) * up
    token_types: int = 0  # rows of a table; the first is added to every embedding
    bidirectional: bool = False  # an encoder: tokens also see later ones; nothing is generated
    project_after_norm: bool = False  # the embedding is projected after positions and norm
    head_activation: str = "gelu"  # after `head_dense`, before the product with the vocabulary
    labels: tuple[str, ...] = ()  # of a classifier
    label_activation: str = "tanh"  # after `label_dense`
    label_pooling: Literal["cls", "mean", "last"] = "cls"  # of the classifier
    label_score: Literal["softmax", "sigmoid", "none"] = "softmax"
    label_padding: int | None = None  # a token that is never the last one of a text
    # What makes a score for a pair of texts of the one label: an activation's name in
    # sentence-transformers, "Sigmoid" or "Identity"; others are not supported.
    pair_score: str = "Sigmoid"
    headless: bool = False  # a decoder without a vocabulary head: nothing is generated
    dense: tuple[str, ...] = ()  # the activation of each product after an embedding's pooling
    relative: Relative | None = None
    disentangled: Disentangled | None = None
    sinusoids: Sinusoids | None = None  # the positions, if the file has no table of them
    encoder: Architecture | None = None
    # Of the quantised matrices, by the name of the tensor; the others are numbers.
    formats: Formats = field(default_factory=lambda: Formats({}))
    mixers: tuple[Mixer, ...] = (SELF_ATTENTION,)  # of a layer; their partials are added
    dims: Mapping[Unit, Dim] = field(default_factory=dict)
    kinds: tuple[Architecture, ...] = ()  # of layers
    kind_of: tuple[int, ...] = ()  # the index in `kinds` of each layer's

    def with_kinds(self, layers: Sequence[Architecture]) -> Self:
        """The same model with these layers, of which equal ones are one kind.

        Their windows and ropes, by layer, are the model's.
        """
        kinds: list[Architecture] = []
        for layer in layers:
            if layer not in kinds:
                kinds.append(layer)
        shared = [replace(kind, windows=self.windows, ropes=self.ropes) for kind in kinds]
        return replace(
            self,
            kinds=tuple(shared),
            kind_of=tuple(kinds.index(layer) for layer in layers),
            weights=tuple(weight for weight in self.weights if not weight.per_layer),
        )

    def at(self, layer: int) -> Architecture:
        """The architecture of a layer; its weights that are in no layer do not count."""
        return self.kinds[self.kind_of[layer]] if self.kinds else self

    @property
    def encoder_layers(self) -> int:
        """The number of encoder layers, which come before the decoder's."""
        return 0 if self.encoder is None else self.encoder.num_layers

    @property
    def total_layers(self) -> int:
        """Layers of encoder and decoder together."""
        return self.encoder_layers + self.num_layers

    @property
    def stacks(self) -> tuple[Architecture, ...]:
        """The encoder, if there is one, and the decoder, in the order of their layers."""
        return (self,) if self.encoder is None else (self.encoder, self)

    @property
    def max_shards(self) -> int:
        """Every shard has at least one query head of each stack."""
        return min(stack.num_heads for stack in self.stacks)

    def lacking(self, tensors: Collection[str]) -> Self:
        """The same model from a file without these optional tensors.

        Of several weights of one role, the first present one counts. The embedding takes the place
        of an absent head.
        """
        present: dict[str, Weight] = {}
        for weight in self.weights:
            if weight.tensor(0) not in tensors:
                present.setdefault(weight.role, weight)
        encoder = None if self.encoder is None else self.encoder.lacking(tensors)
        kinds = tuple(kind.lacking(tensors) for kind in self.kinds)
        return replace(self, weights=tuple(present.values()), encoder=encoder, kinds=kinds)

    def quantised(self, formats: Mapping[str, BlockFormat]) -> Self:
        """The same model with quantised matrices: their formats by the names of the tensors."""
        formats = formats if isinstance(formats, Formats) else Formats(formats)
        encoder = None if self.encoder is None else self.encoder.quantised(formats)
        kinds = tuple(kind.quantised(formats) for kind in self.kinds)
        return replace(self, formats=formats, encoder=encoder, kinds=kinds)

    def block_format(
        self, weight: Weight, layer: int | None = None, piece: int | None = None
    ) -> BlockFormat | None:
        """The format of a quantised weight, or of one piece of it; None where it is numbers."""
        return self.formats.get(weight.tensor(layer, piece=piece)) if self.formats else None

    @property
    def quantisation(self) -> str:
        """The layouts of the quantised weights: "", "q8", "q4" or "q4+q8"."""
        return "+".join(sorted({form.layout for form in self.formats.values()}))

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def tied(self) -> bool:
        """Whether the embedding serves as the head."""
        return self.weight("head") is None

    @property
    def has_head(self) -> bool:
        """Whether the model has a vocabulary head."""
        if self.headless:
            return False
        return not self.bidirectional or self.weight("head_dense") is not None

    @property
    def dense_roles(self) -> tuple[str, ...]:
        """The weights of the products after an embedding's pooling, in their order."""
        return tuple(f"dense_{number}" for number in range(len(self.dense)))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the weights support; other files of the checkpoint may limit them."""
        if self.has_head and not self.bidirectional:
            return ("generate",)
        supported = {"fill-mask": self.has_head, "classify": bool(self.labels)}
        return ("embed", *(task for task, is_supported in supported.items() if is_supported))

    @property
    def rope_switch(self) -> int:
        """The length beyond which all ropes of a sequence change; 0: they never do."""
        return max((r.original_positions for r in self.rope_kinds if r.long_divisors), default=0)

    @property
    def continues_anywhere(self) -> bool:
        """Whether a slot with n tokens can be continued from any of its first n, by any sequence.

        Not with recurrent state, which only has its last token, nor where keys and values depend
        on more than the tokens before: on an encoder's output, or on later tokens.
        """
        return self.encoder is None and not self.bidirectional and not self.is_recurrent

    @property
    def is_recurrent(self) -> bool:
        """Whether a layer keeps a state of which it only has the last ones."""
        return any(mixer.is_recurrent for kind in self.kinds or (self,) for mixer in kind.mixers)

    @property
    def shared_length(self) -> int:
        """The longest sequence whose keys and values another one with the same tokens has too.

        A dynamic rope rotates longer ones by their exact length.
        """
        if not self.continues_anywhere:
            return 0
        limits = (r.original_positions for r in self.rope_kinds if r.kind == "dynamic")
        return min((self.max_positions, *limits))

    @property
    def rope_kinds(self) -> tuple[Rope, ...]:
        """The distinct ropes, in the order of the layers that use them first."""
        return tuple(dict.fromkeys(rope for rope in self.ropes if rope is not None))

    @property
    def sums_per_layer(self) -> int:
        """All-reduces in one layer; with `kinds`, that of a kind."""
        inner = sum(mixer.sums for mixer in self.mixers) + (self.qk_norm == "all")
        return len(self.sides) + inner

    @property
    def sides(self) -> tuple[tuple[str, ...], ...]:
        """The sides of a layer: the roles of row-parallel products whose partials are one sum."""
        rows = [w.role for w in self.weights if w.per_layer and w.cut == "row"]
        mlp = tuple(role for role in rows if role in MLP_OUTPUTS)
        others = (*MLP_OUTPUTS, CROSS_OUTPUT, INPUT_OUTPUT, INPUT_TABLE)
        mixing = tuple(role for role in rows if role not in others)
        if self.parallel:
            return ((*mixing, *mlp),)
        cross = (CROSS_OUTPUT,) if CROSS_OUTPUT in rows else ()
        inputs = (INPUT_OUTPUT,) if INPUT_OUTPUT in rows else ()
        return tuple(side for side in (mixing, cross, mlp, inputs) if side)

    @property
    def has_inputs(self) -> bool:
        """Whether layers take the embeddings of a step's tokens, besides the hidden states."""
        return any(kind.weight(INPUT_TABLE) is not None for kind in self.kinds)

    @property
    def has_mlp(self) -> bool:
        """Whether a layer has an MLP, or a mixture of experts."""
        return self.weight("down") is not None

    def first_sum(self, layer: int) -> int:
        """The number of the first all-reduce of a span that starts at `layer`, within a step.

        Number 0 is of the embedding, with which layer 0 starts. The decoder's first layer starts
        with that of the decoder's embedding.
        """
        before = self.encoder_layers
        if self.encoder is not None and layer < before:
            return self.encoder.first_sum(layer)
        start = 0 if self.encoder is None else self.encoder.first_sum(before)
        if self.kinds:
            of_kind = [kind.sums_per_layer for kind in self.kinds]
            sums = sum(of_kind[kind] for kind in self.kind_of[: layer - before])
        else:
            sums = self.sums_per_layer * (layer - before)
        return start + sums + (layer > before)

    def weight(self, role: str) -> Weight | None:
        """The weight of this role; None if the model has none, as a tied model has no `head`."""
        for weight in self.weights:
            if weight.role == role:
                return weight
        return None

    def item_size(self, unit: Unit) -> int:
        """The elements that a shard has all or none of."""
        if unit in self.dims:
            return self.dims[unit].size
        return self.head_dim if unit in ("heads", "kv_heads") else 1

    def size(self, unit: Unit) -> int:
        """The elements of a dimension that counts `unit`."""
        if unit in self.dims:
            return self.dims[unit].count * self.dims[unit].size
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
            "distances": 2 * self.disentangled.span if self.disentangled else 0,
        }
        return sizes[unit]

    def inputs(self, weight: Weight) -> int | None:
        """The inputs of a weight that is not cut along them; None for a vector."""
        if weight.inner is not None:
            return prod(weight.inner) if weight.inner else None
        if weight.role in ("embed", "head", "project_in"):
            return self.embed_size or self.hidden_size
        if weight.role in HEAD_NORMS or weight.bias_only or weight.as_row:
            return None
        if weight.role == "relative":
            return self.num_heads
        if weight.role == "token_types" or (weight.role == "positions" and self.project_after_norm):
            return self.embed_size or self.hidden_size
        is_table = weight.unit in ("positions", "experts", "labels", "distances")
        is_matrix = weight.cut != "replicated" or is_table or weight.role in MATRICES
        return self.hidden_size if is_matrix else None

    def outputs(self, weight: Weight) -> int:
        """The outputs of a weight that is not cut along its inputs; the length of a vector."""
        if weight.role == "project_out":
            return self.embed_size or self.hidden_size
        return self.size(weight.unit)

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """The shape of the logical weight, uncut: `(out, in)`, or `(size,)` for a vector."""
        if weight.cut == "row":
            return (*(weight.inner or (self.hidden_size,)), self.size(weight.unit))
        if weight.inner is not None:
            return (self.outputs(weight), *weight.inner)
        inputs = self.inputs(weight)
        return (self.outputs(weight),) if inputs is None else (self.outputs(weight), inputs)

    def pieces(self, weight: Weight) -> int:
        """The number of tensors in the checkpoint that make up this weight of one layer."""
        if not weight.in_pieces:
            return 1
        counts = {"q_norm": self.num_heads, "k_norm": self.num_kv_heads}
        return counts.get(weight.role, self.num_experts)

    def bias_size(self, weight: Weight) -> int:
        """The size of the bias: whole for a row-parallel product, where it follows the sum."""
        return self.hidden_size if weight.cut == "row" else self.outputs(weight)
