"""The families, by `model_type`, and the architecture that a config.json describes.

Every module of this package with a `MODEL_TYPE` is a family: a new family is a new file.
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
from skynet.architecture.tensors import Same, absent_tensors, lacks_head
from skynet.errors import CheckpointError, SkynetError, UnsupportedModel
from skynet.models.text_heads import with_text_heads


def _families() -> dict[str, ModuleType]:
    names = (info.name for info in iter_modules(models.__path__) if info.name != "registry")
    modules = (import_module(f"{models.__name__}.{name}") for name in names)
    return {module.MODEL_TYPE: module for module in modules if hasattr(module, "MODEL_TYPE")}


FAMILIES = _families()
KNOWN: list[str] = sorted(FAMILIES)


def family_of(config: Config) -> str:
    """The config's model_type, one of `KNOWN`.

    Raises:
        UnsupportedModel: it is missing, or none of `KNOWN`.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UnsupportedModel(f"model_type {name!r} is not supported; known: {', '.join(KNOWN)}")
    return name


def load_architecture(config: Config) -> Architecture:
    """The architecture that a parsed config.json describes.

    Raises:
        UnsupportedModel: a model_type or a feature that is not supported; names it.
        CheckpointError: a required field is missing or has an impossible value.
    """
    arch = _with_all_weights(config).lacking(config.get(ABSENT, ()))
    return arch.quantised(_config.block_formats(config))


def saved_architecture(config: Config) -> Architecture:
    """The architecture of a checkpoint that is not here, as Transformers saves it.

    It has no copies of tied weights, and no tables that can be computed.

    Raises:
        As `load_architecture`.
    """
    arch = _with_all_weights(config)
    tied = bool(config.get("tie_word_embeddings", True))
    return arch.lacking(
        [
            weight.tensor()
            for stack in arch.stacks
            for weight in stack.weights
            if weight.optional and (tied or weight.role != "head") and not weight.as_row
        ]
    )


def _with_all_weights(config: Config) -> Architecture:
    """With all optional weights, several of which may have the same role."""
    try:
        return with_text_heads(_read(config), config)
    except SkynetError:
        raise
    # Families read fields of many types. What Python says of a wrong one names its value.
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"config.json: a field of this {config.get('model_type')!r:.40} model has an "
            f"impossible value: {type(error).__name__}: {error!s:.200}"
        ) from error


def _read(config: Config) -> Architecture:
    if transformers_model.KEY in config:
        return transformers_model.read(config)
    family = FAMILIES[family_of(config)]
    _config.refuse_quantized(config)
    _config.refuse(config, **getattr(family, "REFUSED", {}))
    arch: Architecture = family.architecture(config)
    return arch


def known_architecture(config: Config) -> Architecture | None:
    """The architecture with all optional weights; None if the config is not supported."""
    try:
        return _with_all_weights(config)
    except (UnsupportedModel, CheckpointError):
        return None


def settled(config: Config, tensors: Iterable[str], same: Same) -> Config:
    """The config, with the optional tensors that the file lacks under `ABSENT`.

    A config that is not supported is returned as it is, for `load_architecture` to refuse.

    same: whether two of the file's tensors are equal; see `absent_tensors`.
    """
    arch = known_architecture(config)
    if arch is None:
        return config
    names = list(tensors)
    modules = config.get(_config.MODULES)
    if modules and lacks_head(arch, names):  # of embeddings only, as Transformers' base model
        config = {**config, _config.MODULES: {**modules, "head": False}}
        arch = _with_all_weights(config)
    absent = absent_tensors(arch, names, same)
    return {**config, ABSENT: absent} if absent else config


def checkpoint_dtype(config: Config) -> str:
    """The dtype of a config's tensors: "float32", "bfloat16", ...; float32 if it has none."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return str(name).removeprefix("torch.")
