"""What a model is: one file per family, data only. Start at `load_architecture`.

A family without a file may be described in its config, which skynet/derived/ sees to.
"""

from __future__ import annotations

from collections.abc import Iterable

from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models import (
    bart,
    bert,
    bloom,
    camembert,
    cohere,
    cohere2,
    distilbert,
    electra,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gptj,
    granite,
    llama,
    m2m_100,
    marian,
    mbart,
    mistral,
    mixtral,
    modernbert,
    mt5,
    olmo2,
    opt,
    pegasus,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    stablelm,
    t5,
    xlm_roberta,
)
from skynet.models import config as _config
from skynet.models import derived as _derived
from skynet.models.architecture import Architecture, Weight
from skynet.models.config import ABSENT, Config
from skynet.models.positions import Rope
from skynet.models.staging import (
    Same,
    StagedTensor,
    absent_tensors,
    resolve_names,
    staged_tensors,
)

__all__ = [
    "ABSENT",
    "FAMILIES",
    "KNOWN",
    "Architecture",
    "Rope",
    "StagedTensor",
    "Weight",
    "checkpoint_dtype",
    "family_of",
    "load_architecture",
    "resolve_names",
    "settled",
    "staged_tensors",
]

_MODULES = (
    bart,
    bert,
    bloom,
    camembert,
    cohere,
    cohere2,
    distilbert,
    electra,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gptj,
    granite,
    llama,
    m2m_100,
    marian,
    mbart,
    mistral,
    mixtral,
    modernbert,
    mt5,
    olmo2,
    opt,
    pegasus,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    stablelm,
    t5,
    xlm_roberta,
)
FAMILIES = {family.MODEL_TYPE: family for family in _MODULES}
KNOWN: list[str] = sorted(FAMILIES)


def family_of(config: Config) -> str:
    """The config's model_type, one of `KNOWN`.

    Raises:
        UnsupportedModel: another one, or none.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise UnsupportedModel(f"model_type {name!r} is not computed; known: {', '.join(KNOWN)}")
    return str(name)


def load_architecture(config: Config) -> Architecture:
    """The architecture that a parsed config.json describes.

    Raises:
        UnsupportedModel: a model_type or a feature that is not computed; names it.
        CheckpointError: a field that every model has is missing or has no possible value.
    """
    return _with_all_weights(config).lacking(config.get(ABSENT, ()))


def _with_all_weights(config: Config) -> Architecture:
    """Also those that a file may lack, of which several may have one role."""
    if _derived.KEY in config:
        return _derived.read(config)
    family = FAMILIES[family_of(config)]
    _config.refuse_quantized(config)
    _config.refuse(config, **getattr(family, "REFUSED", {}))
    arch: Architecture = family.architecture(config)
    return arch


def settled(config: Config, tensors: Iterable[str], same: Same) -> Config:
    """The config with what it leaves to the file: which of the optional tensors are not there.

    One that is not computed stays as it is, for `load_architecture` to refuse.

    same: whether two of the file's tensors are equal; a copy of what is used anyway is not there.
    """
    try:
        arch = _with_all_weights(config)
    except (UnsupportedModel, CheckpointError):
        return config
    absent = absent_tensors(arch, tensors, same)
    return {**config, ABSENT: absent} if absent else config


def checkpoint_dtype(config: Config) -> str:
    """The dtype a config names for its tensors: "float32", "bfloat16", ...; float32 if none."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return str(name).removeprefix("torch.")
