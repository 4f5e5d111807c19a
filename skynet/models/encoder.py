"""What the families of encoders share: heads by the config's `architectures`, labels, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.ties import tie
from skynet.errors import CheckpointError

REFUSED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
MASKED_LM, CLASSIFIER = "ForMaskedLM", "ForSequenceClassification"


def head_of(config: read.Config, *masked_lm: str) -> str:
    """What the checkpoint has after its last layer: `ForMaskedLM`, `ForSequenceClassification`, "".

    masked_lm: other endings of classes that have a masked language model's head.
    """
    name = str((config.get("architectures") or [""])[0])
    if name.endswith((MASKED_LM, *masked_lm)):
        return MASKED_LM
    return CLASSIFIER if name.endswith(CLASSIFIER) else ""


def labels(config: read.Config) -> tuple[str, ...]:
    """A classifier's labels, by their number.

    Raises:
        CheckpointError: they are not numbered from 0.
    """
    named = config.get("id2label")
    if not isinstance(named, Mapping) or not named:
        return tuple(f"LABEL_{number}" for number in range(config.get("num_labels") or 2))
    by_number = {int(number): str(name) for number, name in named.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise CheckpointError(f"config.json: id2label numbers {sorted(by_number)}, not 0 and on")
    return tuple(by_number[number] for number in range(len(by_number)))


def score(config: read.Config) -> Literal["softmax", "sigmoid", "none"]:
    """How a classifier's logits become scores, as Transformers' pipelines do it."""
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    several = problem == "multi_label_classification"
    return "sigmoid" if several or len(labels(config)) == 1 else "softmax"


def encoder(
    config: read.Config,
    weights: tuple[Weight, ...],
    prefix: str,
    *,
    names: Mapping[str, str] | None = None,
    **fields: Any,
) -> Architecture:
    """What BERT and its descendants share; `config` has every default filled in.

    names: of the config's fields, where the family has others than BERT.
    fields: of the Architecture, where the family differs.
    """
    own = {name: name for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")}
    own |= {"intermediate_size": "intermediate_size", "hidden_act": "hidden_act", **(names or {})}
    heads, layers = own["num_attention_heads"], read.size(config, own["num_hidden_layers"])
    head_dim = read.head_dim(config, own["hidden_size"], heads)
    is_classifier = head_of(config) == CLASSIFIER
    common: dict[str, Any] = {
        "norm": "layer",
        "max_positions": read.size(config, "max_position_embeddings"),
        "gated": False,
        "ropes": (None,) * layers,
        "learned_positions": True,
        "windows": (None,) * layers,
        "labels": labels(config) if is_classifier else (),
        "label_score": score(config) if is_classifier else "softmax",
    }
    return Architecture(
        model_type=config["model_type"],
        hidden_size=read.size(config, own["hidden_size"]),
        num_layers=layers,
        num_heads=read.size(config, heads),
        num_kv_heads=read.size(config, heads),
        head_dim=head_dim,
        intermediate_size=read.size(config, own["intermediate_size"]),
        vocab_size=read.size(config, "vocab_size"),
        activation=read.activation(config, own["hidden_act"]),
        attention_scale=head_dim**-0.5,
        weights=tie(weights, bool(config.get("tie_word_embeddings", True))),
        prefixes=(prefix, ""),
        bidirectional=True,
        **{**common, **fields},
    )
