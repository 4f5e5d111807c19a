"""GPT-2: layer norm, learned positions, biases everywhere, Conv1D weights, Q, K and V fused."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight

MODEL_TYPE = "gpt2"

DEFAULTS: dict[str, Any] = {
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}
REFUSED: dict[str, Any] = {
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}

LAYER = "transformer.h.{layer}."
QKV: dict[str, Any] = {"bias": True, "transposed": True, "fused": ("q", "k", "v")}
WEIGHTS = (
    Weight("embed", "transformer.wte", "vocab", "vocab"),
    Weight("positions", "transformer.wpe", "replicated", "positions"),
    Weight("attn_norm", LAYER + "ln_1", "replicated", "hidden", bias=True),
    Weight("q", LAYER + "attn.c_attn", "column", "heads", **QKV),
    Weight("k", LAYER + "attn.c_attn", "column", "kv_heads", **QKV),
    Weight("v", LAYER + "attn.c_attn", "column", "kv_heads", **QKV),
    Weight("o", LAYER + "attn.c_proj", "row", "heads", bias=True, transposed=True),
    Weight("mlp_norm", LAYER + "ln_2", "replicated", "hidden", bias=True),
    Weight("up", LAYER + "mlp.c_fc", "column", "columns", bias=True, transposed=True),
    Weight("down", LAYER + "mlp.c_proj", "row", "columns", bias=True, transposed=True),
    Weight("final_norm", "transformer.ln_f", "replicated", "hidden", bias=True),
    Weight("head", "lm_head", "vocab", "vocab"),
)


def architecture(config: read.Config) -> Architecture:
    """A `gpt2` config as an Architecture."""
    config = DEFAULTS | dict(config)
    hidden, heads = read.size(config, "n_embd"), read.size(config, "n_head")
    layers, head_dim = read.size(config, "n_layer"), read.head_dim(config, "n_embd", "n_head")
    return Architecture(
        model_type=MODEL_TYPE,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=config.get("n_inner") or 4 * hidden,
        vocab_size=read.size(config, "vocab_size"),
        max_positions=read.size(config, "n_positions"),
        norm="layer",
        norm_eps=float(config["layer_norm_epsilon"]),
        activation=read.activation(config, "activation_function"),
        gated=False,
        ropes=(None,) * layers,
        learned_positions=True,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5 if config["scale_attn_weights"] else 1.0,
        weights=tie(WEIGHTS, bool(config["tie_word_embeddings"])),
        prefixes=("transformer.", ""),
    )
