"""Shared by the families of encoder-decoders: BART and its descendants, which differ by flags."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Sinusoids
from skynet.architecture.weight import Weight
from skynet.errors import UnsupportedModel

DEFAULTS: dict[str, Any] = {
    "activation_function": "gelu",
    "max_position_embeddings": 1024,
    "scale_embedding": False,
    "tie_word_embeddings": True,
}
REFUSED: dict[str, Any] = {"is_decoder": False, "is_encoder_decoder": True}
NORM_EPS = 1e-5  # not a field of the config
TIED = ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens")
EMBED = Weight("embed", "model.shared", "vocab", "vocab", others=TIED)
# A head tied by the config is in the file once; a second one that differs is not tied.
HEAD = Weight("head", "lm_head", "vocab", "vocab")
HEAD_BIAS = Weight("head_bias", "final_logits_bias", "vocab", "vocab", as_row=True, optional=True)


@dataclass(frozen=True)
class Variant:
    """The differences between BART and its descendants.

    norms_first: norms before attention and MLP, and one after the last layer; else after each sum.
    sinusoids: the positions, if they are not learned; a file may have them as a table.
    """

    norms_first: bool
    embed_norm: bool = False
    sinusoids: Sinusoids | None = None
    position_offset: int = 0
    head_bias: bool = True
    unplaced_token: int | None = None


def encoder_decoder(config: read.Config, variant: Variant) -> Architecture:
    """A variant of BART; `config` has all defaults."""
    encoder, decoder = (_stack(config, side, variant) for side in ("encoder", "decoder"))
    head = replace(HEAD, optional=bool(config["tie_word_embeddings"]))
    return replace(
        decoder,
        encoder=replace(encoder, bidirectional=True),
        weights=(*decoder.weights, head, *((HEAD_BIAS,) if variant.head_bias else ())),
    )


def _stack(config: read.Config, side: str, variant: Variant) -> Architecture:
    """The encoder or the decoder, which have only the hidden size in common."""
    hidden, heads = read.size(config, "d_model"), read.size(config, f"{side}_attention_heads")
    layers = read.size(config, f"{side}_layers")
    head_dim = read.head_dim(config, "d_model", f"{side}_attention_heads")
    return Architecture(
        model_type=config["model_type"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=read.size(config, f"{side}_ffn_dim"),
        vocab_size=read.size(config, "vocab_size"),
        max_positions=read.size(config, "max_position_embeddings"),
        norm="layer",
        norm_eps=NORM_EPS,
        activation=read.activation(config, "activation_function"),
        gated=False,
        ropes=(None,) * layers,
        learned_positions=variant.sinusoids is None,
        sinusoids=variant.sinusoids,
        position_offset=variant.position_offset,
        unplaced_token=variant.unplaced_token,
        windows=(None,) * layers,
        embed_scale=hidden**0.5 if config["scale_embedding"] else 1.0,
        attention_scale=head_dim**-0.5,
        weights=(*_outer(side, variant), *_layer(side, variant.norms_first)),
        prefixes=("model.", ""),
    )


def _outer(side: str, variant: Variant) -> tuple[Weight, ...]:
    """The tables and norms outside of the layers."""
    path, computed = f"model.{side}.", variant.sinusoids is not None
    weights = [
        Weight("embed", path + "embed_tokens", "vocab", "vocab", optional=True),
        EMBED,
        Weight("positions", path + "embed_positions", "replicated", "positions", optional=computed),
    ]
    if variant.embed_norm:
        name = path + "layernorm_embedding"
        weights.append(Weight("embed_norm", name, "replicated", "hidden", bias=True))
    if variant.norms_first:
        weights.append(Weight("final_norm", path + "layer_norm", "replicated", "hidden", bias=True))
    return tuple(weights)


def _layer(side: str, norms_first: bool) -> tuple[Weight, ...]:
    path, place = f"model.{side}.layers.{{layer}}.", "norm" if norms_first else "sum_norm"
    weights = _attention("", path + "self_attn") if side == "encoder" else ()
    if side == "decoder":
        weights = _attention("", path + "self_attn") + _attention("cross_", path + "encoder_attn")
    norms = {"attn": "self_attn_layer_norm", "mlp": "final_layer_norm"}
    if side == "decoder":
        norms["cross"] = "encoder_attn_layer_norm"
    return (
        *weights,
        Weight("up", path + "fc1", "column", "columns", bias=True),
        Weight("down", path + "fc2", "row", "columns", bias=True),
        *(
            Weight(f"{block}_{place}", path + name, "replicated", "hidden", bias=True)
            for block, name in norms.items()
        ),
    )


def _attention(block: str, path: str) -> tuple[Weight, ...]:
    return (
        Weight(block + "q", path + ".q_proj", "column", "heads", bias=True),
        Weight(block + "k", path + ".k_proj", "column", "kv_heads", bias=True),
        Weight(block + "v", path + ".v_proj", "column", "kv_heads", bias=True),
        Weight(block + "o", path + ".out_proj", "row", "heads", bias=True),
    )


def even_width(config: read.Config) -> int:
    """The hidden size of a family with sinusoidal positions, which are pairs of sine and cosine.

    Raises:
        UnsupportedModel: it is odd.
    """
    hidden = read.size(config, "d_model")
    if hidden % 2:
        raise UnsupportedModel(f"d_model={hidden} with sinusoidal positions is not supported: odd")
    return hidden
