"""What a decoder is, as data: its sizes, its variants, and how each of its weights is cut.

A family (llama.py, gpt2.py, ...) makes one `Architecture` from a config; staging, planning and
layers read it and know no family by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cut = Literal["column", "row", "vocab", "replicated"]
Unit = Literal["heads", "kv_heads", "columns", "vocab", "positions", "hidden", "head_dim"]


@dataclass(frozen=True)
class Weight:
    """One logical matrix or vector and where it lies in the checkpoint.

    `name` is the checkpoint's, without `.weight` or `.bias`; `{layer}` stands for the number.
    `unit` is what the cut dimension counts (for a replicated vector: what its length is).
    """

    role: str
    name: str
    cut: Cut
    unit: Unit
    bias: bool = False
    transposed: bool = False  # stored [in, out], as Conv1D does
    fused: tuple[str, ...] = ()  # roles that share the tensor, in order along its out axis

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.name

    def tensor(self, layer: int | None = None, kind: str = "weight") -> str:
        """The checkpoint's name of this weight or bias: `model.layers.3.mlp.up_proj.weight`."""
        return f"{self.name.format(layer=layer)}.{kind}"


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864) and how it is stretched."""

    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_positions: int = 0  # positions of the pretraining; dynamic: where stretching starts
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn: cosines and sines are multiplied by it


@dataclass(frozen=True)
class Architecture:
    """Everything a shard needs to know to compute its part of a decoder."""

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: str  # as Transformers names it
    gated: bool
    rope: Rope | None
    learned_positions: bool
    windows: tuple[int | None, ...]  # per layer: how many last positions a token sees; None: all
    qk_norm: bool
    tied: bool  # the head is the embedding
    attention_scale: float
    weights: tuple[Weight, ...]
    prefixes: tuple[str, ...]  # of the base model's tensors: ours, then others that files use

    @property
    def group(self) -> int:
        """Query heads for each KV head."""
        return self.num_heads // self.num_kv_heads

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
            "positions": self.max_positions,
            "hidden": self.hidden_size,
            "head_dim": self.head_dim,
        }
        return sizes[unit]

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Of the logical weight, uncut: `(out, in)`, or `(size,)` of a vector."""
        size = self.size(weight.unit)
        if weight.cut == "row":
            return (self.hidden_size, size)
        if weight.cut == "replicated" and weight.unit != "positions":
            return (size,)
        return (size, self.hidden_size)

    def bias_size(self, weight: Weight) -> int:
        """A row-parallel product's bias is added after the sum, so it has all outputs."""
        return self.hidden_size if weight.cut == "row" else self.size(weight.unit)

    def fused_offset(self, weight: Weight) -> int:
        """Where this weight's outputs start in the tensor it shares; 0 if it shares none."""
        offset = 0
        for role in weight.fused[: weight.fused.index(weight.role)] if weight.fused else ():
            offset += self._fused_size(role)
        return offset

    def stored_outputs(self, weight: Weight) -> int:
        """Outputs of the tensor in the checkpoint, all fused parts together."""
        if not weight.fused:
            return self.shape(weight)[0]
        return sum(self._fused_size(role) for role in weight.fused)

    def _fused_size(self, role: str) -> int:
        part = self.weight(role)
        if part is None:
            raise KeyError(f"{self.model_type} has no {role!r} to fuse")
        return self.size(part.unit)
