"""Ropes whose frequencies follow the longest sequence of a batch, so that rows disturb each other.

They stay where they are up to some position, and no sequence gets longer than that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from skynet.errors import UnsupportedModel
from skynet.transformers_backend.trace import Trace

MOVING = ("dynamic", "longrope")  # the first beyond all positions, the second beyond the original
ORIGINAL = "original_max_position_embeddings"


def hold_ropes(found: Trace) -> None:
    """Let no rope look at positions, to see whether it has to move: there are none in a trace."""
    for module in found.model.modules():
        if "Rotary" in type(module).__name__ and hasattr(module, "config"):
            module.config = _held_config(module.config)
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            module.rope_type = _held(kinds)
        elif isinstance(kinds, dict):
            module.rope_type = {name: _held(kind) for name, kind in kinds.items()}


def max_positions(found: Trace) -> int:
    """How long a sequence may be, so that no rope moves.

    Raises:
        UnsupportedModel: nothing tells.
    """
    config = found.model.config
    ropes = list(_ropes(getattr(config, "rope_parameters", None)))
    given = {"max_position_embeddings": [getattr(config, "max_position_embeddings", None)]}
    given[ORIGINAL] = [one.get(ORIGINAL) for one in ropes if one.get("rope_type") == "longrope"]
    known: list[int] = []
    for name, values in given.items():
        for value in values:
            if not isinstance(value, int) or value < 1:
                raise UnsupportedModel(
                    f"model_type {found.model_type!r}: {name} is {value!r}, and nothing else tells "
                    "how long a sequence may be"
                )
            known.append(value)
    return min(known)


def _held(kind: Any) -> Any:
    moves = isinstance(kind, str) and any(moving in kind for moving in MOVING)
    return "default" if moves else kind


def _held_config(config: Any) -> Any:
    """The same for a rope that asks its config, which others go on to see as it is."""
    held = copy.deepcopy(config)
    for one in _ropes(getattr(held, "rope_parameters", None)):
        one["rope_type"] = _held(one.get("rope_type"))
    return held


def _ropes(parameters: Any) -> Iterator[dict[str, Any]]:
    """The parameters of each rope: there may be one for each type of layer."""
    if not isinstance(parameters, dict):
        return
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (each for each in parameters.values() if isinstance(each, dict))
