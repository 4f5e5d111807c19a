"""Qwen3-Next: gated delta nets in most layers, gated attention in the others, and experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import partial_dims, read_rope
from skynet.architecture.weight import Dim, Weight
from skynet.models import gated_delta, llama, qwen3, qwen3_moe

MODEL_TYPE = "qwen3_next"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    **gated_delta.DEFAULTS,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "intermediate_size": 5632,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
REFUSED: dict[str, Any] = {"attn_output_gate": True}
OUTSIDE = tuple(weight for weight in llama.WEIGHTS if not weight.per_layer)
NORMS = tuple(weight for weight in llama.WEIGHTS if weight.role in ("attn_norm", "mlp_norm"))
MLP = tuple(weight for weight in llama.WEIGHTS if weight.role in llama.MLP)
SHARED = llama.LAYER + "mlp.shared_expert."
EXPERTS = (
    Weight("router", llama.LAYER + "mlp.gate", "replicated", "experts"),
    Weight("shared_gate", SHARED + "gate_proj", "column", "shared_columns"),
    Weight("shared_up", SHARED + "up_proj", "column", "shared_columns"),
    Weight("shared_down", SHARED + "down_proj", "row", "shared_columns"),
)


def architecture(config: read.Config) -> Architecture:
    """A `qwen3_next` config as an Architecture."""
    config = DEFAULTS | dict(config)
    kernel, groups = config["linear_conv_kernel_dim"], config["linear_num_key_heads"]
    qkvz = ("delta_q", "delta_k", "delta_v", "delta_z")
    gates = ("delta_beta", "delta_decay")
    delta = (
        *(
            gated_delta.projection(role, "in_proj_qkvz", fused=qkvz, by_group=True, groups=groups)
            for role in qkvz
        ),
        *(
            gated_delta.gate(role, "in_proj_ba", fused=gates, by_group=True, groups=groups)
            for role in gates
        ),
        *gated_delta.fused_convolution(kernel),
        *gated_delta.others("norm", "out_proj"),
    )
    return decoder(config, delta)


def decoder(
    config: dict[str, Any],
    delta: tuple[Weight, ...],
    mixture: Iterable[Weight] = qwen3_moe.MIXTURE.values(),
) -> Architecture:
    """The architecture shared by Qwen3-Next and Qwen3.5; `config` has all defaults.

    delta: the weights of a delta net.
    mixture: the weights of experts.
    """
    count = read.size(config, "num_hidden_layers")
    sparse = [_is_sparse(config, layer) for layer in range(count)]
    width = "moe_intermediate_size" if any(sparse) else "intermediate_size"
    rope = read_rope(config, partial_dims(config, read.size(config, "head_dim")))
    plain = {**config, "intermediate_size": config[width], "attention_bias": False}
    base = llama.decoder(plain | {"mlp_bias": False}, rope, OUTSIDE)
    base = replace(base, norm_offset=1.0, dims=gated_delta.dims(config))
    mixer = gated_delta.mixer(config, base.norm_eps)
    kinds = {
        "linear_attention": replace(base, mixers=(mixer,), weights=(*NORMS, *delta)),
        "full_attention": replace(
            base, qk_norm="head", weights=(*NORMS, *gated_attention(config, base))
        ),
    }
    interval = read.size(config, "full_attention_interval")
    default = [gated_delta.TYPES[(layer + 1) % interval == 0] for layer in range(count)]
    types = read.layer_types(config, gated_delta.TYPES, default)
    base = with_experts(base, config, ()) if any(sparse) else base
    layers = [
        with_experts(kinds[kind], config, mixture) if is_sparse else with_mlp(kinds[kind], config)
        for kind, is_sparse in zip(types, sparse, strict=True)
    ]
    return base.with_kinds(layers)


def gated_attention(config: dict[str, Any], base: Architecture) -> tuple[Weight, ...]:
    """Weights of attention whose output is multiplied by a gate, which queries are fused with."""
    name, fused = llama.LAYER + "self_attn.q_proj", ("q", "q_gate")
    queries = tuple(
        Weight(role, name, "column", "heads", fused=fused, by_group=True, groups=base.num_heads)
        for role in fused
    )
    others = tuple(weight for weight in llama.WEIGHTS if weight.role in ("k", "v", "o"))
    biased = ("q", "q_gate", "k", "v", "o") if config["attention_bias"] else ()
    return (*llama.with_bias((*queries, *others), *biased), *qwen3.HEAD_NORMS)


def with_mlp(kind: Architecture, config: dict[str, Any]) -> Architecture:
    """The same kind of layer with a dense MLP."""
    size = read.size(config, "intermediate_size")
    return replace(kind, intermediate_size=size, weights=(*kind.weights, *MLP))


def with_experts(
    kind: Architecture, config: dict[str, Any], mixture: Iterable[Weight]
) -> Architecture:
    """The same kind of layer with experts, and an MLP that all tokens share by a score."""
    score = Weight(
        "shared_score",
        llama.LAYER + "mlp.shared_expert_gate",
        "replicated",
        "scores",
        inner=(kind.hidden_size,),
        float32=True,
    )
    shared = Dim(read.size(config, "shared_expert_intermediate_size"))
    experts = read.experts(config, "num_experts", sum_to_one=bool(config["norm_topk_prob"]))
    return replace(
        kind,
        weights=(*kind.weights, *mixture, *EXPERTS, score),
        dims={**kind.dims, "shared_columns": shared, "scores": Dim(1)},
        **experts,
    )


def _is_sparse(config: dict[str, Any], layer: int) -> bool:
    """Whether a layer has experts."""
    step, dense = read.size(config, "decoder_sparse_step"), config["mlp_only_layers"] or ()
    return bool(config["num_experts"]) and layer not in dense and (layer + 1) % step == 0
