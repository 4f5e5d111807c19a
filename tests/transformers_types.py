"""Model types tested on the Transformers backend, supported and refused. For docs/models.md.

No code decides by these names: each model is checked when it is split. Tests keep them true.
"""

from __future__ import annotations

from dataclasses import dataclass

TRANSFORMERS = "5.24"  # the version they were tested with

# Supported model types, with notes.
RUN: dict[str, str] = {
    "afmoe": "a mixture of experts",
    "apertus": "",
    "apertus1p5_text": "",
    "arcee": "",
    "cohere2_moe": "a mixture of experts",
    "cohere_compass_text": "",
    "cwm": "",
    "dots1": "a mixture of experts",
    "ernie4_5": "",
    "ernie4_5_moe": "a mixture of experts",
    "exaone4": "",
    "exaone_moe": "a mixture of experts",
    "flex_olmo": "a mixture of experts; five sums per layer",
    "glm": "three sums per layer",
    "glm4": "three sums per layer",
    "glm4_moe": "a mixture of experts",
    "helium": "",
    "hunyuan_v1_dense": "its plan cuts no layer: every shard has all of them",
    "hunyuan_v1_moe": "a mixture of experts",
    "hy_v3": "a mixture of experts",
    "hyperclovax": "",
    "internlm3": "",
    "iquestcoder": "",
    "jais2": "",
    "kolibri1": "a mixture of experts",
    "mellum": "a mixture of experts",
    "minimax_m2": "a mixture of experts; five sums per layer",
    "ministral": "",
    "ministral3": "",
    "nanochat": "",
    "nemotron": "",
    "olmo": "",
    "olmo3": "five sums per layer",
    "olmoe": "a mixture of experts; five sums per layer",
    "phimoe": "a mixture of experts",
    "qwen2_moe": "a mixture of experts",
    "seed_oss": "",
    "solar_open": "a mixture of experts",
    "starcoder2": "",
    "vaultgemma": "",
}


@dataclass(frozen=True)
class Refused:
    """Model types that are refused for one reason; `says` is part of the message."""

    why: str
    says: str
    model_types: str


REFUSED = (
    Refused(
        "experts with transposed parameters, or not stored expert by expert",
        "'packed_rowwise'",
        "aria_text llama4_text",
    ),
    Refused(
        "experts with transposed parameters, or not stored expert by expert",
        "not have expert by expert",
        "granitemoe granitemoeshared minimax_m3_vl_text",
    ),
    Refused(
        "sparse attention: an indexer chooses the tokens that a query sees",
        "an indexer chooses",
        "deepseek_v32 deepseek_v4 glm_moe_dsa",
    ),
    Refused(
        "keys and values of low rank (MLA)",
        "'mla_kv_a_proj'",
        "axk2 dots3_note_text hy_v4 longcat_flash",
    ),
    Refused("keys wider than values (MLA)", "numbers a head and values of", "sarvam_mla"),
    Refused("keys wider than values (MLA)", "cannot be run on shapes", "axk1"),
    Refused("linear attention", "cannot be run on shapes", "minimax"),
    Refused(
        "parameters per head (sinks, gates)",
        "'local_params'",
        "beam granite_swa granitemoe_swa mimo_v2_flash",
    ),
    Refused("parameters per head (sinks, gates)", "is cut by the plan, but", "laguna"),
    Refused(
        "parameters that are neither cut nor known to be the same on every shard: state spaces, "
        "linear attention, convolutions, sinks, scales",
        "that are not known to be the same on every shard",
        "bailing_hybrid diffllama doge dory flint gemma3n_text "
        "gpt_oss hrm_text inkling2_loop_text inkling2_text jamba "
        "kimi_linear lara_mini lfm3",
    ),
    Refused("rare styles of the plan", "which is not supported", "inkling_text qwen4_exp_text"),
    Refused("several models in one", "is made of several models", "llama4 phi4_multimodal"),
    Refused("other tensor names in files", "have to be converted", "sarvam_moe"),
)
