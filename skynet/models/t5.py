"""T5, T5 1.1 and Flan-T5: an encoder-decoder with relative positions, RMS norms, no biases.

sequences have no limit in the config: `--slot-tokens` sets one
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Relative
from skynet.architecture.weight import Weight
from skynet.errors import UnsupportedModel

MODEL_TYPE = "t5"

DEFAULTS: dict[str, Any] = {
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
REFUSED: dict[str, Any] = {"is_decoder": False, "is_encoder_decoder": True}
MAX_POSITIONS = 2**15  # relative positions have no limit

EMBED = Weight(
    "embed",
    "shared",
    "vocab",
    "vocab",
    others=("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"),
)
# T5 1.1 has a separate head, even if its config ties it.
HEAD = Weight("head", "lm_head", "vocab", "vocab", optional=True)


def architecture(config: read.Config) -> Architecture:
    """A `t5` config as an Architecture."""
    return encoder_decoder(DEFAULTS | dict(config))


def encoder_decoder(config: read.Config) -> Architecture:
    """The architecture shared by T5 and mT5; `config` has all defaults."""
    layers = read.size(config, "num_layers")
    encoder = _stack(config, "encoder", layers)
    has_other = config.get("num_decoder_layers") is not None
    decoder_layers = read.size(config, "num_decoder_layers") if has_other else layers
    decoder = _stack(config, "decoder", decoder_layers)
    # Only if the field is absent does the tie decide; null means no scale.
    tied = config.get("tie_word_embeddings") is not False
    scaled = config.get("scale_decoder_outputs", tied)
    return replace(
        decoder,
        encoder=replace(encoder, bidirectional=True),
        weights=(*decoder.weights, HEAD),
        logit_scale=decoder.hidden_size**-0.5 if scaled else 1.0,
    )


def _stack(config: read.Config, side: str, layers: int) -> Architecture:
    heads, (activation, gated) = read.size(config, "num_heads"), _activation(config)
    return Architecture(
        model_type=config["model_type"],
        hidden_size=read.size(config, "d_model"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=read.size(config, "d_kv"),
        intermediate_size=read.size(config, "d_ff"),
        vocab_size=read.size(config, "vocab_size"),
        max_positions=MAX_POSITIONS,
        norm="rms",
        norm_eps=float(config["layer_norm_epsilon"]),
        activation=activation,
        gated=gated,
        ropes=(None,) * layers,
        learned_positions=False,
        windows=(None,) * layers,
        attention_scale=1.0,
        relative=Relative(
            read.size(config, "relative_attention_num_buckets"),
            read.size(config, "relative_attention_max_distance"),
        ),
        weights=_weights(side, gated),
        prefixes=("", "transformer."),
    )


def _activation(config: read.Config) -> tuple[str, bool]:
    """(activation, whether the MLP is gated) of `relu`, `gated-gelu`, `gated-silu`, ..."""
    given = str(config["feed_forward_proj"])
    kind, dash, name = given.rpartition("-")
    if dash and kind != "gated":
        raise UnsupportedModel(f"feed_forward_proj={given!r} is not supported")
    name = config.get("dense_act_fn") or ("gelu_new" if given == "gated-gelu" else name)
    return read.activation({"feed_forward_proj": name}, "feed_forward_proj"), bool(dash)


def _weights(side: str, gated: bool) -> tuple[Weight, ...]:
    path, blocks = side + ".block.{layer}.layer.", ["attn"]
    weights = _attention("", path + "0.SelfAttention")
    if side == "decoder":
        weights += _attention("cross_", path + "1.EncDecAttention")
        blocks.append("cross")
    blocks.append("mlp")
    mlp = f"{path}{len(blocks) - 1}.DenseReluDense."
    first = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    return (
        Weight("embed", f"{side}.embed_tokens", "vocab", "vocab", optional=True),
        EMBED,
        Weight(
            "relative",
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
            "replicated",
            "buckets",
        ),
        *weights,
        *(Weight(role, mlp + name, "column", "columns") for role, name in first.items()),
        Weight("down", mlp + "wo", "row", "columns"),
        *(
            Weight(f"{block}_norm", f"{path}{number}.layer_norm", "replicated", "hidden")
            for number, block in enumerate(blocks)
        ),
        Weight("final_norm", f"{side}.final_layer_norm", "replicated", "hidden"),
    )


def _attention(block: str, path: str) -> tuple[Weight, ...]:
    return (
        Weight(block + "q", path + ".q", "column", "heads"),
        Weight(block + "k", path + ".k", "column", "kv_heads"),
        Weight(block + "v", path + ".v", "column", "kv_heads"),
        Weight(block + "o", path + ".o", "row", "heads"),
    )
