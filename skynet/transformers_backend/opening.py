"""Opening a checkpoint of any family: one without a file is described, or refused by name.

This is the only way in: whoever opens a model to stage or check it does so here. Imports nothing
heavy until a family without a file comes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from skynet.checkpoint.checkpoint import Checkpoint, open_checkpoint
from skynet.errors import ConfigurationError
from skynet.models.registry import FAMILIES, load_architecture

if TYPE_CHECKING:
    from skynet.architecture.transformers_model import TransformersArchitecture


def open_model(model: str, cache_dir: Path) -> Checkpoint:
    """The checkpoint people mean by `model`; arguments as of `open_checkpoint`.

    Raises:
        CheckpointError: as of `open_checkpoint`.
        UnsupportedModel: the family has no file, and cannot be run by Transformers' plan; says why.
    """
    checkpoint = open_checkpoint(model, cache_dir)
    if checkpoint.config.get("model_type") not in FAMILIES:
        describe(checkpoint)
    return checkpoint


def describe(checkpoint: Checkpoint) -> TransformersArchitecture:
    """Write what Transformers says of a checkpoint's model into its config, and return it.

    Raises:
        UnsupportedModel: it cannot be run so.
        CheckpointError: its tensors are not those of the config.
        ConfigurationError: Transformers is not installed.
    """
    try:
        from skynet.transformers_backend.description import describe_model
        from skynet.transformers_backend.tensors import check_tensors
    except ImportError as error:
        raise ConfigurationError(
            f"model_type {checkpoint.config.get('model_type')!r} has no file in SkyNet, and "
            f"Transformers, whose layers could be run instead, is not here ({error}); install it: "
            "pip install transformers accelerate"
        ) from error
    checkpoint.describe(describe_model(checkpoint.config))
    arch = cast("TransformersArchitecture", load_architecture(checkpoint.config))
    check_tensors(checkpoint, arch)
    return arch
