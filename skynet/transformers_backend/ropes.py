"""Ropes whose frequencies depend on the longest sequence of a batch: rows would affect each other.

Up to some position the frequencies are constant: sequences are limited to that length.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from skynet.errors import UnsupportedModel
from skynet.transformers_backend.trace import Trace

# The first changes beyond all positions, the second beyond the original ones.
CHANGING = ("dynamic", "longrope")
ORIGINAL = "original_max_position_embeddings"


def hold_ropes(trace: Trace) -> None:
    """Make all ropes constant: a changing one would read positions, which a trace does not have."""
    for module in trace.model.modules():
        if "Rotary" in type(module).__name__ and hasattr(module, "config"):
            module.config = _held_config(module.config)
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            module.rope_type = _held(kinds)
        elif isinstance(kinds, dict):
            module.rope_type = {name: _held(kind) for name, kind in kinds.items()}


def max_positions(trace: Trace) -> int:
    """The longest sequence for which all ropes are constant.

    Raises:
        UnsupportedModel: the config does not say.
    """
    config = trace.model.config
    ropes = list(_ropes(getattr(config, "rope_parameters", None)))
    limits = {"max_position_embeddings": [getattr(config, "max_position_embeddings", None)]}
    limits[ORIGINAL] = [one.get(ORIGINAL) for one in ropes if one.get("rope_type") == "longrope"]
    known: list[int] = []
    for name, values in limits.items():
        for value in values:
            if not isinstance(value, int) or value < 1:
                raise UnsupportedModel(
                    f"model_type {trace.model_type!r}: {name} is {value!r}, expected the "
                    "length of the longest sequence"
                )
            known.append(value)
    return min(known)


def _held(kind: Any) -> Any:
    changes = isinstance(kind, str) and any(changing in kind for changing in CHANGING)
    return "default" if changes else kind


def _held_config(config: Any) -> Any:
    """A copy of a config with constant ropes; other modules keep the original."""
    held = copy.deepcopy(config)
    for one in _ropes(getattr(held, "rope_parameters", None)):
        one["rope_type"] = _held(one.get("rope_type"))
    return held


def _ropes(parameters: Any) -> Iterator[dict[str, Any]]:
    """The parameters of each rope; there may be one rope for each type of layer."""
    if not isinstance(parameters, dict):
        return
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (each for each in parameters.values() if isinstance(each, dict))
