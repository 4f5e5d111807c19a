"""From a config to the description of its model: Transformers' modules, cut by Transformers' plan.

Everything that is not understood is refused by name; nothing is left out or guessed. That what is
understood is also computed right is shown by running it: skynet/check/self_test.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from skynet.architecture.config import Config, refuse_quantized
from skynet.architecture.transformers_model import describe
from skynet.errors import UnsupportedModel
from skynet.transformers_backend.kinds import sample_layers
from skynet.transformers_backend.parameters import Parameters
from skynet.transformers_backend.ropes import hold_ropes, max_positions
from skynet.transformers_backend.skeleton import config_class, transformers_version
from skynet.transformers_backend.styles import Styles, plan_of
from skynet.transformers_backend.trace import AttentionCall, Trace, prepare
from skynet.transformers_backend.whole import check_known

LAYER = re.compile(r"(?P<path>.+)\.(?P<layer>\d+)\.(?P<inside>.+)")


def describe_model(config: Config) -> dict[str, Any]:
    """What skynet/architecture/transformers_model.py reads, of a config.json.

    Raises:
        UnsupportedModel: the model cannot be run so; names what of it.
    """
    refuse_quantized(config)
    model_type, kind = str(config.get("model_type")), config_class(config)
    if getattr(kind, "sub_configs", None):
        raise UnsupportedModel(
            f"model_type {model_type!r} is made of several models ({', '.join(kind.sub_configs)}), "
            "not computed: a text model alone is"
        )
    plan = plan_of(kind, model_type)
    Styles(model_type, plan, "")  # refused before anything is built
    found = prepare(config)
    styles = Styles(model_type, plan, _prefix(found.model))
    check_known(found, styles)
    hold_ropes(found)
    for path, _ in found.model.named_modules():
        if styles.of(path) == "experts":
            found.stand_in(path)
    found.run()
    return _described(found, styles)


def _described(found: Trace, styles: Styles) -> dict[str, Any]:
    attention = _Attention.of(found)
    _check_layers(found, attention)
    parameters = Parameters(found, styles, attention.path, attention.inside, attention.first)
    embedding = found.model.get_input_embeddings()
    vocab_size, hidden_size = embedding.weight.shape
    prefix = _prefix(found.model)
    return describe(
        parameters.weights,
        hidden_size=hidden_size,
        num_layers=len(found.calls),
        num_heads=attention.first.num_heads,
        num_kv_heads=attention.first.num_kv_heads,
        head_dim=attention.first.head_dim,
        intermediate_size=parameters.columns,
        vocab_size=vocab_size,
        max_positions=max_positions(found),
        gated=parameters.gated,
        windows=[call.window for call in found.calls],
        prefixes=[prefix, ""] if prefix else [""],
        transformers=transformers_version(),
        path=attention.path,
        attention=attention.inside,
        heads_of=parameters.heads_of,
        sums=parameters.sums,
        samples=sample_layers(found, attention.path),
        num_experts=parameters.num_experts,
    )


@dataclass(frozen=True)
class _Attention:
    """Where attention is: in each layer of the list at `path`, the module `inside`."""

    path: str
    inside: str
    first: AttentionCall

    @classmethod
    def of(cls, found: Trace) -> _Attention:
        """Raises UnsupportedModel unless each layer has one attention, all alike."""
        places = [LAYER.fullmatch(call.path) for call in found.calls]
        if not places or None in places:
            raise UnsupportedModel(
                f"model_type {found.model_type!r}: no layer's attention goes through "
                "Transformers' attention interface, so its keys and values cannot be kept"
            )
        first, call = places[0], found.calls[0]
        if first is None:
            raise UnsupportedModel(f"{call.path} is in no list of layers")
        for number, (place, other) in enumerate(zip(places, found.calls, strict=True)):
            expected = f"{first['path']}.{number}.{first['inside']}"
            if place is None or other.path != expected:
                raise found.refusal(
                    other.path, f"attends where {expected} was expected: one attention a layer"
                )
            if _heads(other) != _heads(call):
                raise found.refusal(
                    other.path, f"has heads {_heads(other)}, those of layer 0 are {_heads(call)}"
                )
        if call.value_dim != call.head_dim:
            raise found.refusal(
                call.path,
                f"has keys of {call.head_dim} numbers a head and values of {call.value_dim}",
            )
        if call.num_heads % call.num_kv_heads:
            raise found.refusal(
                call.path,
                f"has {call.num_heads} query heads, which do not share {call.num_kv_heads} KV "
                "heads evenly",
            )
        return cls(first["path"], first["inside"], call)


def _heads(call: AttentionCall) -> tuple[int, int, int]:
    return call.num_heads, call.num_kv_heads, call.head_dim


def _check_layers(found: Trace, attention: _Attention) -> None:
    """Each layer once, in order, from hidden states to hidden states."""
    layers = found.model.get_submodule(attention.path)
    paths = [f"{attention.path}.{layer}" for layer in range(len(layers))]
    for path in paths[len(found.calls) :]:
        raise found.refusal(path, "has no attention that goes through Transformers' interface")
    if [path for path in found.called if path in set(paths)] != paths:
        raise UnsupportedModel(
            f"model_type {found.model_type!r} does not call its layers one after the other"
        )
    for path in paths:
        if found.outputs[path] != torch.Tensor.__name__:
            raise found.refusal(path, f"returns a {found.outputs[path]}, not hidden states alone")


def _prefix(model: Any) -> str:
    """The path of the base model in the whole one, with its dot."""
    return f"{model.base_model_prefix}." if model.base_model_prefix else ""
