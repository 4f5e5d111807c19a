"""Shared by the families of encoders: heads by the config's `architectures`, labels, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight
from skynet.errors import CheckpointError

REFUSED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
NAMES = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "hidden_act",
)
MASKED_LM, CLASSIFIER = "ForMaskedLM", "ForSequenceClassification"


def class_name(config: read.Config) -> str:
    """Transformers' class of the checkpoint; "" if the config has none."""
    return str((config.get("architectures") or [""])[0])


def head_of(config: read.Config, *masked_lm: str) -> str:
    """The head of the checkpoint: `ForMaskedLM`, `ForSequenceClassification`, or "".

    masked_lm: other endings of class names with a masked language model's head.
    """
    name = class_name(config)
    if name.endswith((MASKED_LM, *masked_lm)):
        return MASKED_LM
    return CLASSIFIER if name.endswith(CLASSIFIER) else ""


def labels(config: read.Config) -> tuple[str, ...]:
    """A classifier's labels, in the order of their numbers.

    Raises:
        CheckpointError: they are not numbered from 0.
    """
    named = config.get("id2label")
    if not isinstance(named, Mapping) or not named:
        return tuple(f"LABEL_{number}" for number in range(config.get("num_labels") or 2))
    by_number = {int(number): str(name) for number, name in named.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise CheckpointError(
            f"config.json: id2label numbers {sorted(by_number)}, expected 0, 1, ..."
        )
    return tuple(by_number[number] for number in range(len(by_number)))


def score(config: read.Config) -> Literal["softmax", "sigmoid", "none"]:
    """How a classifier's logits become scores, as in Transformers' pipelines."""
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    several = problem == "multi_label_classification"
    return "sigmoid" if several or len(labels(config)) == 1 else "softmax"


def pair_score(config: read.Config) -> str:
    """See `Architecture.pair_score`; as CrossEncoder of sentence-transformers reads it."""
    given = config.get("sentence_transformers")
    path = given.get("activation_fn") if isinstance(given, Mapping) else None
    path = path or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    return str(path).rpartition(".")[2]


def label_fields(config: read.Config) -> dict[str, Any]:
    """The fields of a classifier's Architecture that the config has under any family."""
    return {
        "labels": labels(config),
        "label_score": score(config),
        "pair_score": pair_score(config),
    }


def encoder(
    config: read.Config,
    weights: tuple[Weight, ...],
    prefix: str,
    *,
    names: Mapping[str, str] | None = None,
    **fields: Any,
) -> Architecture:
    """The architecture shared by BERT and its descendants; `config` has all defaults.

    names: names of config fields that differ from BERT's.
    fields: fields of the Architecture that differ.
    """
    field = {name: name for name in NAMES} | dict(names or {})
    heads, layers = field["num_attention_heads"], read.size(config, field["num_hidden_layers"])
    head_dim = read.head_dim(config, field["hidden_size"], heads)
    is_classifier = head_of(config) == CLASSIFIER
    common: dict[str, Any] = {
        "norm": "layer",
        "max_positions": read.size(config, "max_position_embeddings"),
        "gated": False,
        "attention_scale": head_dim**-0.5,
        "ropes": (None,) * layers,
        "learned_positions": True,
        "windows": (None,) * layers,
        **(label_fields(config) if is_classifier else {}),
    }
    return Architecture(
        model_type=config["model_type"],
        hidden_size=read.size(config, field["hidden_size"]),
        num_layers=layers,
        num_heads=read.size(config, heads),
        num_kv_heads=read.size(config, heads),
        head_dim=head_dim,
        intermediate_size=read.size(config, field["intermediate_size"]),
        vocab_size=read.size(config, "vocab_size"),
        activation=read.activation(config, field["hidden_act"]),
        weights=tie(weights, bool(config.get("tie_word_embeddings", True))),
        prefixes=(prefix, ""),
        bidirectional=True,
        **{**common, **fields},
    )
