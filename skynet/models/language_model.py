"""The language model inside of a checkpoint that also takes images or sound: config and tensors.

The rest, towers and projectors, is neither staged nor counted. Of text alone the language model
computes what the whole model does; ropes in several dimensions are then plain ones, since all
dimensions of a position are the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from skynet.architecture.config import Config

# Where a config has the language model's.
PLACES = ("text_config", "llm_config", "language_config")
# Fields beside the language model's that are its own: always, and if it has none of that name.
TIED = "tie_word_embeddings"
OUTER = (
    TIED,
    "dtype",
    "torch_dtype",
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# model_type of a language model, or of a whole model with the language model's fields beside its
# towers' -> the family that computes the same of text.
COMPUTES_AS = {
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "kimi_k2": "deepseek_v3",
}
# Of ropes in several dimensions: time, height and width.
ROPE_FIELDS, SEVERAL = ("rope_scaling", "rope_parameters"), ("mrope_section", "mrope_interleaved")
BLOCKS = re.compile(r"^blocks\.")  # as Transformers writes Kimi K2.5's layers
INSIDE = re.compile(r"(?:model\.)?(?:language_model|text_model|llm)\.(?:model\.)?(?P<name>.+)")


def language_config(config: Config) -> dict[str, Any]:
    """The language model's config; any other is returned as it is."""
    nested = [config[place] for place in PLACES if isinstance(config.get(place), Mapping)]
    own = {name: value for name, value in config.items() if not nested or name in OUTER}
    if nested:
        own |= {name: value for name, value in nested[0].items() if _counts(name, value, own)}
    kind = own.get("model_type")
    if isinstance(kind, str) and kind in COMPUTES_AS:
        own["model_type"] = COMPUTES_AS[kind]
    return _with_plain_rope(own)


def language_tensors(names: Collection[str]) -> dict[str, str]:
    """The language model's tensors: name -> the file's name."""
    inside = {name: match["name"] for name in names if (match := INSIDE.fullmatch(name))}
    if not inside:
        return {name: name for name in names}
    found = {_canonical(own): name for name, own in inside.items()}
    heads = {name: name for name in names if name.startswith("lm_head.")}
    return heads | found


def _counts(name: str, value: Any, outer: Config) -> bool:
    """Whether a field of the language model counts; the program's own are set by it only."""
    if name == TIED:
        return TIED not in outer
    return (name not in OUTER or value is not None) and not str(name).startswith("skynet_")


def _canonical(name: str) -> str:
    if name.startswith("lm_head."):
        return name
    return "model." + BLOCKS.sub("layers.", name)


def _with_plain_rope(config: dict[str, Any]) -> dict[str, Any]:
    for field in ROPE_FIELDS:
        rope = config.get(field)
        if isinstance(rope, Mapping) and any(name in rope for name in SEVERAL):
            plain = {name: value for name, value in rope.items() if name not in SEVERAL}
            for name in ("type", "rope_type"):
                if plain.get(name) == "mrope":
                    plain[name] = "default"
            config[field] = plain
    return config
