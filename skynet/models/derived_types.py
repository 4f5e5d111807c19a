"""Model types without a file that were tried: which run, and why others do not. For docs/models.md.

Nothing is decided by these names: whatever comes is tried where its checkpoint is. Tests hold them.
"""

from __future__ import annotations

from dataclasses import dataclass

TRANSFORMERS = "5.24"  # the version they were tried with

# What runs, and what is to be known about it.
RUN: dict[str, str] = {
    "apertus": "",
    "apertus1p5_text": "",
    "arcee": "",
    "cohere_compass_text": "",
    "cwm": "",
    "ernie4_5": "",
    "exaone4": "",
    "glm": "three sums a layer",
    "glm4": "three sums a layer",
    "helium": "",
    "hunyuan_v1_dense": "its plan cuts no layer: every shard holds all of them",
    "hyperclovax": "",
    "internlm3": "",
    "iquestcoder": "",
    "jais2": "",
    "ministral": "",
    "ministral3": "",
    "nanochat": "",
    "nemotron": "",
    "olmo": "",
    "olmo3": "five sums a layer",
    "seed_oss": "",
    "starcoder2": "",
    "vaultgemma": "",
}


@dataclass(frozen=True)
class Refused:
    """Model types that are refused for one reason; `says` is in the message."""

    why: str
    says: str
    model_types: str


REFUSED = (
    Refused(
        "a mixture of experts",
        "'packed_colwise'",
        "afmoe axk1 bailing_hybrid cohere2_moe deepseek_v3 deepseek_v4 dots1 ernie4_5_moe "
        "exaone_moe flex_olmo flint gemma4_text glm4_moe granitemoe granitemoehybrid "
        "granitemoeshared hunyuan_v1_moe hy_v3 jamba kimi_linear kolibri1 laguna lara_mini "
        "lfm2_moe mellum minimax minimax_m2 minimax_m3_vl_text olmoe phimoe qwen2_moe "
        "qwen3_5_moe_text qwen3_next qwen4_exp_text sarvam_mla sarvam_moe solar_open",
    ),
    Refused("a mixture of experts", "'packed_rowwise'", "aria_text llama4_text"),
    Refused(
        "a mixture of experts",
        "'moe_tp_experts'",
        "inkling2_loop_text inkling2_text inkling_text nemotron_h",
    ),
    Refused(
        "keys and values of low rank (MLA)",
        "'mla_kv_a_proj'",
        "axk2 deepseek_v2 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa hy_v4 "
        "longcat_flash minicpm3",
    ),
    Refused("keys wider than values (MLA)", "numbers a head and values of", "youtu"),
    Refused(
        "parameters of a head each (sinks)",
        "'local_params'",
        "beam granite_swa granitemoe_swa mimo_v2_flash",
    ),
    Refused(
        "parameters that are neither cut nor known to be the same on every shard: state spaces, "
        "linear attention, convolutions, sinks, scales",
        "that are not known to be the same on every shard",
        "bamba diffllama doge dory falcon_h1 gemma3n_text gpt_oss hrm_text lfm2 lfm3 olmo_hybrid "
        "qwen3_5_text",
    ),
    Refused("Q, K and V fused, in blocks of its own", "is cut by the plan, but", "codegen"),
    Refused("heads that differ from layer to layer", "has heads", "gemma4_unified_text"),
    Refused("more than a text model", "is made of several models", "llama4 phi4_multimodal"),
    Refused("tensors that are called otherwise in files", "have to be converted", "exaone"),
)
