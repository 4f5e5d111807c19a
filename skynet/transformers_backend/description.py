"""From a config to the description of its model: Transformers' modules, cut by Transformers' plan.

Whatever is not understood is refused by name; nothing is left out or guessed. That the rest is
computed correctly is tested by running it: self_test.py.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from skynet.architecture.config import Config, refuse_quantized, refuse_sparse_attention
from skynet.architecture.transformers_model import describe
from skynet.errors import UnsupportedModel
from skynet.transformers_backend.kinds import sample_layers
from skynet.transformers_backend.layer_weights import AttentionPlace
from skynet.transformers_backend.parameters import Parameters
from skynet.transformers_backend.ropes import hold_ropes, max_positions
from skynet.transformers_backend.skeleton import config_class, transformers_version
from skynet.transformers_backend.styles import Styles, plan_of
from skynet.transformers_backend.trace import AttentionCall, Trace, prepare
from skynet.transformers_backend.whole import check_known

LAYER = re.compile(r"(?P<path>.+)\.(?P<layer>\d+)\.(?P<inside>.+)")


def describe_model(config: Config) -> dict[str, Any]:
    """The description of a config.json's model, for skynet/architecture/transformers_model.py.

    Raises:
        UnsupportedModel: the model cannot run on the Transformers backend; names the reason.
    """
    refuse_sparse_attention(config)
    refuse_quantized(config)
    model_type, config_type = str(config.get("model_type")), config_class(config)
    if getattr(config_type, "sub_configs", None):
        raise UnsupportedModel(
            f"model_type {model_type!r} is made of several models "
            f"({', '.join(config_type.sub_configs)}), not supported: only text models are"
        )
    plan = plan_of(config_type, model_type)
    Styles(model_type, plan, "")  # refused before anything is built
    trace = prepare(config)
    styles = Styles(model_type, plan, _prefix(trace.model))
    check_known(trace, styles)
    hold_ropes(trace)
    for path, _ in trace.model.named_modules():
        if styles.of(path) == "experts":
            trace.stand_in(path)
    trace.run()
    return _described(trace, styles)


def _described(trace: Trace, styles: Styles) -> dict[str, Any]:
    attention = _attention_place(trace)
    _check_layers(trace, attention)
    parameters = Parameters(trace, styles, attention)
    embedding = trace.model.get_input_embeddings()
    vocab_size, hidden_size = embedding.weight.shape
    prefix = _prefix(trace.model)
    return describe(
        parameters.weights,
        hidden_size=hidden_size,
        num_layers=len(trace.calls),
        num_heads=attention.call.num_heads,
        num_kv_heads=attention.call.num_kv_heads,
        head_dim=attention.call.head_dim,
        intermediate_size=parameters.columns,
        vocab_size=vocab_size,
        max_positions=max_positions(trace),
        gated=parameters.gated,
        windows=[call.window for call in trace.calls],
        prefixes=[prefix, ""] if prefix else [""],
        transformers=transformers_version(),
        path=attention.path,
        attention=attention.inside,
        heads_of=parameters.heads_of,
        sums=parameters.sums,
        samples=sample_layers(trace, attention.path),
        num_experts=parameters.num_experts,
    )


def _attention_place(trace: Trace) -> AttentionPlace:
    """Raises UnsupportedModel unless each layer has one attention, all of the same shape."""
    matches = [LAYER.fullmatch(call.path) for call in trace.calls]
    if not matches or None in matches:
        raise UnsupportedModel(
            f"model_type {trace.model_type!r}: no layer's attention goes through "
            "Transformers' attention interface, so its keys and values cannot be cached"
        )
    first, call = matches[0], trace.calls[0]
    if first is None:
        raise UnsupportedModel(f"{call.path} is in no list of layers")
    for number, (match, other) in enumerate(zip(matches, trace.calls, strict=True)):
        expected = f"{first['path']}.{number}.{first['inside']}"
        if match is None or other.path != expected:
            raise trace.refusal(
                other.path, f"attends where {expected} was expected: one attention a layer"
            )
        if _heads(other) != _heads(call):
            raise trace.refusal(
                other.path, f"has heads {_heads(other)}, those of layer 0 are {_heads(call)}"
            )
    if call.value_dim != call.head_dim:
        raise trace.refusal(
            call.path,
            f"has keys of {call.head_dim} numbers a head and values of {call.value_dim}",
        )
    if call.num_heads % call.num_kv_heads:
        raise trace.refusal(
            call.path,
            f"has {call.num_heads} query heads, which do not share {call.num_kv_heads} KV "
            "heads evenly",
        )
    return AttentionPlace(first["path"], first["inside"], call)


def _heads(call: AttentionCall) -> tuple[int, int, int]:
    return call.num_heads, call.num_kv_heads, call.head_dim


def _check_layers(trace: Trace, attention: AttentionPlace) -> None:
    """Each layer must run once, in order, from hidden states to hidden states."""
    layers = trace.model.get_submodule(attention.path)
    paths = [f"{attention.path}.{layer}" for layer in range(len(layers))]
    for path in paths[len(trace.calls) :]:
        raise trace.refusal(path, "has no attention that goes through Transformers' interface")
    if [path for path in trace.called if path in set(paths)] != paths:
        raise UnsupportedModel(
            f"model_type {trace.model_type!r} does not call its layers one after the other"
        )
    for path in paths:
        if trace.outputs[path] != torch.Tensor.__name__:
            raise trace.refusal(path, f"returns a {trace.outputs[path]}, not hidden states alone")


def _prefix(model: Any) -> str:
    """The path of the base model in the whole one, with its dot."""
    return f"{model.base_model_prefix}." if model.base_model_prefix else ""
