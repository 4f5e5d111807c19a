"""Transformers' model of a checkpoint: its class by task, built without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from skynet.architecture.architecture import Architecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import CheckpointError, ConfigurationError
from skynet.reference.library import quiet
from skynet.request.task_names import CLASSIFY, EMBED, FILL_MASK, GENERATE


@dataclass(frozen=True)
class ReferenceModel:
    """A class of Transformers' models, and how its forward pass is called.

    auto_class: the name of the class that builds it.
    result: the field of its output that is compared, (1, tokens, width) or (1, width).
    inputs: the arguments that take the token ids, one for each stack.
    options: further arguments of the forward pass.
    bare: the base model, whose weights' names lack the prefix of models with a head.
    unused: modules that contribute nothing to the result, and that SkyNet has no weights for.
    """

    auto_class: str
    result: str
    inputs: tuple[str, ...] = ("input_ids",)
    options: Mapping[str, Any] = field(default_factory=dict)
    bare: bool = False
    unused: tuple[str, ...] = ()


# By the last of a model's tasks: the one that needs its head.
_MODELS = {
    GENERATE: ReferenceModel("AutoModelForCausalLM", "logits", options={"use_cache": False}),
    FILL_MASK: ReferenceModel("AutoModelForMaskedLM", "logits"),
    CLASSIFY: ReferenceModel("AutoModelForSequenceClassification", "logits"),
    EMBED: ReferenceModel("AutoModel", "last_hidden_state", bare=True, unused=("pooler",)),
}
_ENCODER_DECODER = ReferenceModel(
    "AutoModelForSeq2SeqLM",
    "logits",
    inputs=("input_ids", "decoder_input_ids"),
    options={"use_cache": False},
)


def reference_model(arch: Architecture) -> ReferenceModel:
    """Transformers' class for checkpoints of this architecture."""
    return _MODELS[arch.tasks[-1]] if arch.encoder is None else _ENCODER_DECODER


def build(checkpoint: Checkpoint, kind: ReferenceModel, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model, with buffers but with parameters on the meta device; and its config.

    Raises:
        ConfigurationError: Transformers is not installed.
        CheckpointError: Transformers builds no model from this config.
    """
    try:
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise ConfigurationError(
            f"`skynet check` compares with Transformers, which is not installed ({error}): "
            "pip install transformers accelerate"
        ) from error
    try:
        with quiet(), init_empty_weights(include_buffers=False):
            config = transformers.AutoConfig.from_pretrained(str(checkpoint.path))
            # Not the grouped kernel, which requires sizes that are multiples of 8.
            experts = any(hasattr(config, name) for name in ("num_experts_per_tok", "moe_topk"))
            eager = {"experts_implementation": "eager"} if experts else {}
            auto_class = getattr(transformers, kind.auto_class)
            model = auto_class.from_config(config, dtype=dtype, **eager)
    except Exception as error:  # models raise anything
        raise CheckpointError(
            f"Transformers cannot make a model of {checkpoint.path / 'config.json'}: {error}"
        ) from error
    for name in kind.unused:
        if hasattr(model, name):
            setattr(model, name, None)
    return model.eval(), config


def without_prefix(arch: Architecture) -> Architecture:
    """The same with the base model's names of weights; files may have them with the prefix."""
    prefix = arch.prefixes[0]
    weights = (replace(weight, name=weight.name.removeprefix(prefix)) for weight in arch.weights)
    return replace(arch, weights=tuple(weights), prefixes=("", prefix))
