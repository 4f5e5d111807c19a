"""A head that the config ties to the embedding: which of the two a file may have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from skynet.architecture.weight import Weight

AnyWeight = TypeVar("AnyWeight", bound=Weight)


def tie(weights: tuple[AnyWeight, ...], tied: bool) -> tuple[AnyWeight, ...]:
    """The same weights, with head and embedding tied to each other if `tied`.

    A file then has one of them, under either name, or both. If the two differ, each is used, as
    Transformers does; see `tensors.absent_tensors`.
    """
    heads = tuple(weight.name for weight in weights if weight.role == "head")
    if not tied or not heads:
        return weights
    changes: dict[str, dict[str, Any]] = {"head": {"optional": True}, "embed": {"others": heads}}
    return tuple(replace(weight, **changes.get(weight.role, {})) for weight in weights)
