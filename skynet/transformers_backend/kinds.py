"""Which layers of a model are of the same kind, so that a test of one layer holds for all."""

from __future__ import annotations

import json
from typing import Any

from skynet.transformers_backend.trace import Trace

PLAIN = (bool, int, float, str, type(None))
NUMBERS = ("layer_idx", "layer_id", "layer_number")  # attributes that number the layer


def sample_layers(trace: Trace, path: str) -> list[int]:
    """The first layer of each kind, in order."""
    kinds: dict[str, int] = {}
    for layer, _ in enumerate(trace.calls):
        kinds.setdefault(_kind(trace, path, layer), layer)
    return sorted(kinds.values())


def _kind(trace: Trace, path: str, layer: int) -> str:
    """All plain attributes of the layer's modules, and its entries in lists of the config."""
    count, module = len(trace.calls), trace.model.get_submodule(f"{path}.{layer}")
    attributes: list[Any] = [trace.calls[layer].window]
    for inner, owner in module.named_modules():
        values = {
            name: value
            for name, value in vars(owner).items()
            if isinstance(value, PLAIN) and name not in NUMBERS
        }
        attributes.append([inner, type(owner).__name__, values])
    for name, value in sorted(vars(trace.model.config).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            attributes.append([name, value[layer]])
    return json.dumps(attributes, sort_keys=True, default=repr)
