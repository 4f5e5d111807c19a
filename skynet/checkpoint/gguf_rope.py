"""The rope scaling of a GGUF file, as fields of a config.json.

Transformers' GGUF loader reads the base of a rope and leaves its scaling out; llama.cpp keeps it in
metadata, or as one divisor for each frequency in tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skynet.errors import CheckpointError

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FULL = "full_attention"  # the layers that are scaled, in families with a rope for each kind
# Metadata -> config field, by the type of scaling.
FIELDS = {
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    },
    "longrope": {
        "original_context_length": "original_max_position_embeddings",
        "attn_factor": "attention_factor",
    },
}
WITHOUT_EFFECT = {"type", "finetuned"}


def add_rope_scaling(config: dict[str, Any], file: Path) -> None:
    """Add the scaling of a GGUF file's rope to the config that Transformers made of it.

    Raises:
        CheckpointError: a scaling that is not supported; names it.
    """
    ropes = config.get("rope_parameters") or {}
    rope = ropes.get(FULL, ropes)
    if rope.get("rope_type", "default") != "default":
        return  # Transformers has read it
    scaling = _scaling(file, config.get("max_position_embeddings"))
    if scaling is None:
        return
    rope |= scaling
    config["rope_parameters"] = ropes or rope


def _scaling(file: Path, positions: int | None) -> dict[str, Any] | None:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    divisors = {
        tensor.name: [float(number) for number in tensor.data]
        for tensor in reader.tensors
        if tensor.name in (FREQS, LONG, SHORT)
    }
    if FREQS in divisors:  # of Llama 3.1 and later: the same for any length of a text
        return {
            "rope_type": "longrope",
            "short_factor": divisors[FREQS],
            "long_factor": divisors[FREQS],
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": positions,
        }
    given = _metadata(reader)
    kind = "longrope" if LONG in divisors and SHORT in divisors else given.get("type", "none")
    if kind == "none":
        return None
    known = FIELDS.get(kind, {})
    unknown = given.keys() - known.keys() - WITHOUT_EFFECT
    if not known or unknown or (kind == "longrope" and len(divisors) < 2):
        raise CheckpointError(
            f"{file}: rope scaling {kind!r} with {sorted(given)} is not supported; known are "
            f"{', '.join(FIELDS)}. Use the model's safetensors files"
        )
    scaling = {field: given[name] for name, field in known.items() if name in given}
    if kind == "longrope":
        scaling |= {"short_factor": divisors[SHORT], "long_factor": divisors[LONG]}
    return {"rope_type": kind, **scaling}


def _metadata(reader: Any) -> dict[str, Any]:
    """The values of `ARCHITECTURE.rope.scaling.*`, by their last word."""
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        return {}
    prefix = f"{architecture.contents()}.rope.scaling."
    return {
        name.removeprefix(prefix): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(prefix)
    }
