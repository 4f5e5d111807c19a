"""Transformers' model of a checkpoint: its class by task, built without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
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


CAUSAL = "AutoModelForCausalLM"
# Text models that Transformers has among models of images and text only.
AMONG_IMAGE_MODELS = ("mistral4",)
# By the last of a model's tasks: the one that needs its head.
_MODELS = {
    GENERATE: ReferenceModel(CAUSAL, "logits", options={"use_cache": False}),
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
            if checkpoint.is_inside:
                config = transformers.AutoConfig.for_model(**_fields(checkpoint.config))
            else:
                config = transformers.AutoConfig.from_pretrained(str(checkpoint.path))
            # Not the grouped kernel, which requires sizes that are multiples of 8.
            experts = any(
                hasattr(config, name)
                for name in ("num_experts_per_tok", "top_k_experts", "moe_topk")
            )
            eager = {"experts_implementation": "eager"} if experts else {}
            auto_class = getattr(transformers, kind.auto_class)
            if kind.auto_class == CAUSAL and config.model_type in AMONG_IMAGE_MODELS:
                auto_class = transformers.AutoModelForImageTextToText
            model = auto_class.from_config(config, dtype=dtype, **eager)
    except Exception as error:  # models raise anything
        raise CheckpointError(
            f"Transformers cannot make a model of {checkpoint.path / 'config.json'}: {error}"
        ) from error
    for name in kind.unused:
        if hasattr(model, name):
            setattr(model, name, None)
    return model.eval(), config


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that are Transformers'."""
    return {name: value for name, value in config.items() if not name.startswith("skynet_")}


def without_prefix(arch: Architecture) -> Architecture:
    """The same with the base model's names of weights; files may have them with the prefix."""
    prefix = arch.prefixes[0]
    weights = (replace(weight, name=weight.name.removeprefix(prefix)) for weight in arch.weights)
    return replace(arch, weights=tuple(weights), prefixes=("", prefix))


def with_module_names(arch: Architecture) -> Architecture:
    """The same with the names of Transformers' modules, where files have others."""
    if isinstance(arch, TransformersArchitecture):  # it has them already
        return arch
    renamed, kind = renaming(arch.model_type), ".weight"  # the table's patterns end in a dot
    weights = (
        replace(weight, name=renamed(weight.name + kind).removesuffix(kind))
        for weight in arch.weights
    )
    encoder = None if arch.encoder is None else with_module_names(arch.encoder)
    return replace(arch, weights=tuple(weights), encoder=encoder)


def renaming(model_type: str) -> Callable[[str], str]:
    """What Transformers' loader calls a tensor of a file; tensors that it converts keep names."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    conversions = get_checkpoint_conversion_mapping(model_type) or ()
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]

    def renamed(name: str) -> str:
        for each in renamings:
            name, _ = each.rename_source_key(name)
        return name

    return renamed
