"""BLOOM: ALiBi instead of position embeddings, a normed embedding, biases, Q K V fused by head.

`slow_but_exact` with `pretraining_tp` above 1, for which Transformers adds no biases
"""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Alibi
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight

MODEL_TYPE = "bloom"

DEFAULTS: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "seq_length": 2048,  # of the training; ALiBi has no limit
}
REFUSED: dict[str, Any] = {
    "apply_residual_connection_post_layernorm": False,
}

LAYER = "transformer.h.{layer}."
QKV: dict[str, Any] = {"bias": True, "fused": ("q", "k", "v"), "by_group": True}
WEIGHTS = (
    Weight("embed", "transformer.word_embeddings", "vocab", "vocab"),
    Weight(
        "embed_norm", "transformer.word_embeddings_layernorm", "replicated", "hidden", bias=True
    ),
    Weight("attn_norm", LAYER + "input_layernorm", "replicated", "hidden", bias=True),
    Weight("q", LAYER + "self_attention.query_key_value", "column", "heads", **QKV),
    Weight("k", LAYER + "self_attention.query_key_value", "column", "kv_heads", **QKV),
    Weight("v", LAYER + "self_attention.query_key_value", "column", "kv_heads", **QKV),
    Weight("o", LAYER + "self_attention.dense", "row", "heads", bias=True),
    Weight("mlp_norm", LAYER + "post_attention_layernorm", "replicated", "hidden", bias=True),
    Weight("up", LAYER + "mlp.dense_h_to_4h", "column", "columns", bias=True),
    Weight("down", LAYER + "mlp.dense_4h_to_h", "row", "columns", bias=True),
    Weight("final_norm", "transformer.ln_f", "replicated", "hidden", bias=True),
    Weight("head", "lm_head", "vocab", "vocab"),
)


def architecture(config: read.Config) -> Architecture:
    """A `bloom` config as an Architecture."""
    config = DEFAULTS | _old_names(config)
    if (config.get("pretraining_tp") or 1) > 1:
        read.refuse(config, slow_but_exact=False)
    hidden, layers = read.size(config, "hidden_size"), read.size(config, "n_layer")
    head_dim = read.head_dim(config, "hidden_size", "n_head")
    return Architecture(
        model_type=MODEL_TYPE,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=read.size(config, "n_head"),
        num_kv_heads=read.size(config, "n_head"),
        head_dim=head_dim,
        intermediate_size=4 * hidden,
        vocab_size=read.size(config, "vocab_size"),
        max_positions=read.size(config, "seq_length"),
        norm="layer",
        norm_eps=float(config["layer_norm_epsilon"]),
        activation="gelu_pytorch_tanh",
        gated=False,
        ropes=(None,) * layers,
        learned_positions=False,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        alibi=Alibi(),
        weights=tie(WEIGHTS, bool(config["tie_word_embeddings"])),
        prefixes=("transformer.", ""),
    )


def _old_names(config: read.Config) -> dict[str, Any]:
    names = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer"}
    names["num_attention_heads"] = "n_head"
    renamed = {names[name]: value for name, value in config.items() if name in names}
    return dict(config) | {name: value for name, value in renamed.items() if value is not None}
