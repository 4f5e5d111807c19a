"""Opens a checkpoint of any model type; one without a family file is described, or refused by name.

Staging and checks open models here. Transformers is imported only for a model without a family
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from skynet.architecture import transformers_model
from skynet.architecture.architecture import Architecture
from skynet.architecture.config import refuse_sparse_attention
from skynet.checkpoint.checkpoint import Checkpoint, open_checkpoint
from skynet.errors import ConfigurationError, UnsupportedModel
from skynet.models.registry import FAMILIES, load_architecture, saved_architecture

if TYPE_CHECKING:
    from skynet.architecture.transformers_model import TransformersArchitecture


def open_model(model: str, cache_dir: Path) -> Checkpoint:
    """The checkpoint that `model` names; arguments as in `open_checkpoint`.

    Raises:
        CheckpointError: see `open_checkpoint`.
        UnsupportedModel: the model has no family file, and the Transformers backend refuses it.
    """
    checkpoint = open_checkpoint(model, cache_dir)
    model_type = checkpoint.config.get("model_type")
    if model_type not in FAMILIES:
        refuse_sparse_attention(checkpoint.config)
        if checkpoint.quantised:
            raise UnsupportedModel(
                f"{checkpoint.name} has quantised weights, but the Transformers backend, on which "
                f"model_type {model_type!r} runs, reads none; use the model in bfloat16"
            )
        describe(checkpoint)
    return checkpoint


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The architecture of a model whose tensors are not here; see `saved_architecture`.

    A model without a family file is described.

    Raises:
        UnsupportedModel, CheckpointError, ConfigurationError: as `describe`.
    """
    if config.get("model_type") not in FAMILIES:
        config = {**config, transformers_model.KEY: _description(config)}
    return saved_architecture(config)


def describe(checkpoint: Checkpoint) -> TransformersArchitecture:
    """Describe a checkpoint's model in its config, and return the architecture.

    Raises:
        UnsupportedModel: the model cannot run on the Transformers backend.
        CheckpointError: the checkpoint's tensors are not those of the config.
        ConfigurationError: Transformers is not installed.
    """
    checkpoint.describe(_description(checkpoint.config))
    from skynet.transformers_backend.tensors import check_tensors

    arch = cast("TransformersArchitecture", load_architecture(checkpoint.config))
    check_tensors(checkpoint, arch)
    return arch


def _description(config: dict[str, Any]) -> dict[str, Any]:
    try:
        from skynet.transformers_backend.description import describe_model
    except ImportError as error:
        raise ConfigurationError(
            f"model_type {config.get('model_type')!r} has no file in SkyNet, and "
            f"Transformers, which could run it, is not installed ({error}); install it: "
            "pip install transformers accelerate"
        ) from error
    return describe_model(config)
