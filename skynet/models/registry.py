"""The families, by `model_type`, and the architecture that a config.json describes.

Every module of this package that has a `MODEL_TYPE` is a family: a new family is a new file.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from skynet import models
from skynet.architecture import config as _config
from skynet.architecture import transformers_model
from skynet.architecture.architecture import Architecture
from skynet.architecture.config import ABSENT, Config
from skynet.architecture.tensors import Same, absent_tensors
from skynet.errors import CheckpointError, UnsupportedModel


def _families() -> dict[str, ModuleType]:
    names = (info.name for info in iter_modules(models.__path__) if info.name != "registry")
    modules = (import_module(f"{models.__name__}.{name}") for name in names)
    return {module.MODEL_TYPE: module for module in modules if hasattr(module, "MODEL_TYPE")}


FAMILIES = _families()
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
    if transformers_model.KEY in config:
        return transformers_model.read(config)
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
