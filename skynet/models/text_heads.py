"""What a checkpoint has after its last layer in place of a vocabulary head: a decoder's classifier,
and the modules of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.config import MODULES
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.architecture.weight import Dim, Weight
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models.encoder import CLASSIFIER, class_name, label_fields

HEADS = ("head", "head_bias")
# The activations of module Dense, by the last part of their names in PyTorch.
ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
MAX_DENSE = 8


def with_text_heads(arch: Architecture, config: read.Config) -> Architecture:
    """The architecture with the heads for texts that its config.json names.

    Raises:
        UnsupportedModel: the class is a classifier that is not computed.
        CheckpointError: `MODULES` cannot be read.
    """
    if class_name(config).endswith(CLASSIFIER) and not arch.labels:
        arch = _classifier(arch, config)
    modules = config.get(MODULES)
    return arch if modules is None else _with_modules(arch, modules)


def _classifier(arch: Architecture, config: read.Config) -> Architecture:
    """A decoder whose last token's hidden state is multiplied with the labels' weights."""
    if arch.encoder is not None or arch.weight("project_out") is not None:
        raise UnsupportedModel(f"{class_name(config)} is not supported: its head is another one")
    if isinstance(arch, TransformersArchitecture):
        raise UnsupportedModel(
            f"{class_name(config)} is not supported: {arch.model_type} has no family file, and the "
            "Transformers backend has no classifiers"
        )
    padding = config.get("pad_token_id")
    labelled = replace(
        _headless(arch),
        label_pooling="last",
        label_padding=padding if isinstance(padding, int) else None,
        **label_fields(config),
    )
    out = Weight("label_out", "score", "replicated", "labels")
    return replace(labelled, weights=(*labelled.weights, out))


def _headless(arch: Architecture) -> Architecture:
    weights = tuple(weight for weight in arch.weights if weight.role not in HEADS)
    return replace(arch, weights=weights, headless=True)


def _with_modules(arch: Architecture, modules: Any) -> Architecture:
    try:
        dense = [_dense(number, each) for number, each in enumerate(modules["dense"])]
        if len(dense) > MAX_DENSE:
            raise CheckpointError(f"modules.json: {len(dense)} modules Dense, at most {MAX_DENSE}")
        if not modules["head"] and not arch.bidirectional:
            arch = _headless(arch)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"config: {MODULES} cannot be read ({error}); split the model again"
        ) from None
    if isinstance(arch, TransformersArchitecture):
        if dense:
            raise UnsupportedModel(
                f"modules.json: the Transformers backend, on which model_type {arch.model_type!r} "
                "runs, has no module Dense"
            )
        return arch
    weights = tuple(weight for weight, _, _ in dense)
    dims = {weight.unit: outputs for weight, outputs, _ in dense}
    activations = tuple(activation for _, _, activation in dense)
    return replace(
        arch, weights=arch.weights + weights, dims={**arch.dims, **dims}, dense=activations
    )


def _dense(number: int, module: Mapping[str, Any]) -> tuple[Weight, Dim, str]:
    """The weight of a module Dense, its outputs, and its activation."""
    role = f"dense_{number}"
    weight = Weight(
        role,
        str(module["name"]),
        "replicated",
        role,
        bias=bool(module["bias"]),
        inner=(read.size(module, "in"),),
        float32=True,
    )
    return weight, Dim(read.size(module, "out")), ACTIVATIONS[str(module["activation"])]
