"""Which layers of a model are alike, so that one of each kind tells about all."""

from __future__ import annotations

import json
from typing import Any

from skynet.transformers_backend.trace import Trace

PLAIN = (bool, int, float, str, type(None))
NUMBERS = ("layer_idx", "layer_id", "layer_number")  # what a module knows of its own place


def sample_layers(found: Trace, path: str) -> list[int]:
    """The first layer of each kind, in order."""
    kinds: dict[str, int] = {}
    for layer, _ in enumerate(found.calls):
        kinds.setdefault(_kind(found, path, layer), layer)
    return sorted(kinds.values())


def _kind(found: Trace, path: str, layer: int) -> str:
    """All plain values that modules of the layer, or the config's lists, have for it."""
    count, module = len(found.calls), found.model.get_submodule(f"{path}.{layer}")
    seen: list[Any] = [found.calls[layer].window]
    for inner, owner in module.named_modules():
        values = {
            name: value
            for name, value in vars(owner).items()
            if isinstance(value, PLAIN) and name not in NUMBERS
        }
        seen.append([inner, type(owner).__name__, values])
    for name, value in sorted(vars(found.model.config).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            seen.append([name, value[layer]])
    return json.dumps(seen, sort_keys=True, default=repr)
