"""GPT-J: layer norm, partial rope of adjacent pairs, one sum per layer, a biased head."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import read_rope
from skynet.architecture.weight import Weight

MODEL_TYPE = "gptj"

DEFAULTS: dict[str, Any] = {
    "n_positions": 2048,
    "rotary_dim": 64,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
REFUSED: dict[str, Any] = {"tie_word_embeddings": False}

LAYER = "transformer.h.{layer}."
WEIGHTS = (
    Weight("embed", "transformer.wte", "vocab", "vocab"),
    Weight("attn_norm", LAYER + "ln_1", "replicated", "hidden", bias=True),
    Weight("q", LAYER + "attn.q_proj", "column", "heads"),
    Weight("k", LAYER + "attn.k_proj", "column", "kv_heads"),
    Weight("v", LAYER + "attn.v_proj", "column", "kv_heads"),
    Weight("o", LAYER + "attn.out_proj", "row", "heads"),
    Weight("up", LAYER + "mlp.fc_in", "column", "columns", bias=True),
    Weight("down", LAYER + "mlp.fc_out", "row", "columns", bias=True),
    Weight("final_norm", "transformer.ln_f", "replicated", "hidden", bias=True),
    Weight("head", "lm_head", "vocab", "vocab", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `gptj` config as an Architecture."""
    config = DEFAULTS | dict(config)
    hidden, layers = read.size(config, "n_embd"), read.size(config, "n_layer")
    head_dim = read.head_dim(config, "n_embd", "n_head")
    rope = read_rope(config, read.size(config, "rotary_dim"), adjacent=True, given={})
    return Architecture(
        model_type=MODEL_TYPE,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=read.size(config, "n_head"),
        num_kv_heads=read.size(config, "n_head"),
        head_dim=head_dim,
        intermediate_size=config.get("n_inner") or 4 * hidden,
        vocab_size=read.size(config, "vocab_size"),
        max_positions=read.size(config, "n_positions"),
        norm="layer",
        norm_eps=float(config["layer_norm_epsilon"]),
        activation=read.activation(config, "activation_function"),
        gated=False,
        ropes=(rope,) * layers,
        learned_positions=False,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        parallel=True,
        weights=WEIGHTS,
        prefixes=("transformer.", ""),
    )
