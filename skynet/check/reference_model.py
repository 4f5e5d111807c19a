"""Transformers' model for a checkpoint: of which class, made without weights, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from skynet.architecture.architecture import Architecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import CheckpointError, ConfigurationError
from skynet.transformers_backend.skeleton import quiet


@dataclass(frozen=True)
class ReferenceModel:
    """A kind of model, as Transformers tells kinds apart.

    auto_class: the name of what makes one.
    result: the field of its output that is compared, (1, tokens, width) or (1, width).
    inputs: what it calls the token ids that each of its stacks reads.
    options: of its forward pass.
    bare: it is the base model, whose weights' names lack the prefix that heads need.
    unused: its modules that compute nothing of the result, and have no weights of ours.
    """

    auto_class: str
    result: str
    inputs: tuple[str, ...] = ("input_ids",)
    options: Mapping[str, Any] = field(default_factory=dict)
    bare: bool = False
    unused: tuple[str, ...] = ()


def build(checkpoint: Checkpoint, kind: ReferenceModel, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model with its buffers, but parameters that have no memory; and its config.

    Raises:
        ConfigurationError: Transformers is not installed.
        CheckpointError: it makes no model of this config.
    """
    try:
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise ConfigurationError(
            f"`skynet check` compares with Transformers, which is not here ({error}); install it: "
            "pip install transformers accelerate"
        ) from error
    try:
        with quiet(), init_empty_weights(include_buffers=False):
            config = transformers.AutoConfig.from_pretrained(str(checkpoint.path))
            # Not grouped: that kernel takes no sizes that are not multiples of 8.
            experts = hasattr(config, "num_experts_per_tok")
            eager = {"experts_implementation": "eager"} if experts else {}
            maker = getattr(transformers, kind.auto_class)
            model = maker.from_config(config, dtype=dtype, **eager)
    except Exception as error:  # each model has errors of its own
        raise CheckpointError(
            f"Transformers cannot make a model of {checkpoint.path / 'config.json'}: {error}"
        ) from error
    for name in kind.unused:
        if hasattr(model, name):
            setattr(model, name, None)
    return model.eval(), config


def without_prefix(arch: Architecture) -> Architecture:
    """With the weights' names of the base model alone; files may have them with the prefix."""
    prefix = arch.prefixes[0]
    weights = (replace(weight, name=weight.name.removeprefix(prefix)) for weight in arch.weights)
    return replace(arch, weights=tuple(weights), prefixes=("", prefix))
