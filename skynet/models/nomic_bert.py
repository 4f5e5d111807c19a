"""Nomic BERT: BERT with rope instead of positions, a gated MLP, and few biases.

`head_dim` other than the hidden size divided by the heads
"""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import max_positions, read_rope
from skynet.architecture.weight import Weight
from skynet.models import bert, encoder
from skynet.models.encoder import CLASSIFIER, MASKED_LM, head_of

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "nomic_bert"

DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "rope_theta": 1000.0,
}
# Fields of the code that once came with checkpoints.
REFUSED: dict[str, Any] = {
    "activation_function": "swiglu",
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "num_experts": 0,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "use_rms_norm": False,
}
NAMES = {
    "layer_norm_epsilon": "layer_norm_eps",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "rotary_emb_base": "rope_theta",
}

LAYER = "nomic_bert.encoder.layers.{layer}."
TABLES = "nomic_bert.embeddings."
QKV: dict[str, Any] = {"fused": ("q", "k", "v")}
WEIGHTS = (
    Weight("embed", TABLES + "word_embeddings", "vocab", "vocab"),
    Weight("token_types", TABLES + "token_type_embeddings", "replicated", "types"),
    Weight("embed_norm", "nomic_bert.emb_ln", "replicated", "hidden", bias=True),
    Weight("q", LAYER + "attn.Wqkv", "column", "heads", **QKV),
    Weight("k", LAYER + "attn.Wqkv", "column", "kv_heads", **QKV),
    Weight("v", LAYER + "attn.Wqkv", "column", "kv_heads", **QKV),
    Weight("o", LAYER + "attn.out_proj", "row", "heads"),
    Weight("attn_sum_norm", LAYER + "norm1", "replicated", "hidden", bias=True),
    Weight("gate", LAYER + "mlp.fc12", "column", "columns"),
    Weight("up", LAYER + "mlp.fc11", "column", "columns"),
    Weight("down", LAYER + "mlp.fc2", "row", "columns"),
    Weight("mlp_sum_norm", LAYER + "norm2", "replicated", "hidden", bias=True),
)
TRANSFORM = "cls.predictions.transform."
HEAD = (
    Weight("head_dense", TRANSFORM + "dense", "replicated", "hidden", bias=True),
    Weight("head_dense_norm", TRANSFORM + "layer_norm", "replicated", "hidden", bias=True),
    *(weight for weight in bert.HEAD if weight.role in ("head", "head_bias")),
)
LABELS = (
    Weight("label_dense", "nomic_bert.pooler.dense", "replicated", "hidden", bias=True),
    Weight("label_out", "classifier", "replicated", "labels", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `nomic_bert` config as an Architecture."""
    given = {name: value for name, value in config.items() if value is not None}
    config = DEFAULTS | {new: given[old] for old, new in NAMES.items() if old in given} | given
    # Rope has no limit: the older field is that of the texts the model is meant for.
    positions = max(read.size(config, "max_position_embeddings"), config.get("n_positions") or 1)
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    read.refuse(config, head_dim=head_dim)
    rope = read_rope(config, head_dim)
    heads = {MASKED_LM: HEAD, CLASSIFIER: LABELS, "": ()}
    return encoder.encoder(
        config,
        WEIGHTS + heads[head_of(config)],
        "nomic_bert.",
        norm_eps=float(config["layer_norm_eps"]),
        token_types=read.size(config, "type_vocab_size"),
        gated=True,
        ropes=(rope,) * read.size(config, "num_hidden_layers"),
        learned_positions=False,
        max_positions=max_positions(rope, positions),
        head_activation=read.activation(config, "hidden_act"),
    )
