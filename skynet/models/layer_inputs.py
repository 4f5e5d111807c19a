"""Per-layer inputs of Gemma 4, as weights; see `skynet/layers/per_layer_input.py`."""

from __future__ import annotations

from dataclasses import replace

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import INPUT_OUTPUT, INPUT_TABLE, Dim, Weight
from skynet.errors import UnsupportedModel
from skynet.models.llama import LAYER


def with_inputs(arch: Architecture, config: read.Config) -> Architecture:
    """The architecture with per-layer inputs, if the config has any."""
    if not config.get("hidden_size_per_layer_input"):
        return arch
    size = read.size(config, "hidden_size_per_layer_input")
    rows, hidden = read.size(config, "vocab_size_per_layer_input"), arch.hidden_size
    if rows < arch.vocab_size:
        raise UnsupportedModel(
            f"vocab_size_per_layer_input={rows} is not supported: tokens of the vocabulary of "
            f"{arch.vocab_size} would have no input"
        )
    table = Weight(
        INPUT_TABLE,
        "model.embed_tokens_per_layer",
        "row",
        "inputs",
        inner=(rows,),
        of_layers="parts",
    )
    weights = (
        table,
        Weight(
            "input_model",
            "model.per_layer_model_projection",
            "replicated",
            "inputs",
            inner=(hidden,),
            of_layers="parts",
        ),
        Weight(
            "input_model_norm",
            "model.per_layer_projection_norm",
            "replicated",
            "inputs",
            of_layers="same",
        ),
        Weight("input_gate", LAYER + "per_layer_input_gate", "column", "inputs"),
        Weight(INPUT_OUTPUT, LAYER + "per_layer_projection", "row", "inputs"),
        Weight("input_post_norm", LAYER + "post_per_layer_input_norm", "replicated", "hidden"),
    )
    dims = {**arch.dims, "inputs": Dim(size)}
    return replace(arch, dims=dims, weights=(*arch.weights, *weights))
