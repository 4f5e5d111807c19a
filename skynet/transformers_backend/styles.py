"""Transformers' tensor-parallel plan of a model: the style of each module.

A plan maps patterns of paths to the names of styles in `transformers.distributed`; "*" stands for
the number of a layer. An unknown style is refused, not guessed.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from skynet.architecture.transformers_model import Style
from skynet.errors import UnsupportedModel
from skynet.models.registry import KNOWN

# Transformers' names, old spellings included, and SkyNet's. The parameters of "experts" are
# packed_colwise and rowwise.
STYLES: dict[str, Style | Literal["packed"]] = {
    "colwise": "column",
    "rowwise": "row",
    "colwise_gather_output": "gather",
    "colwise_rep": "gather",
    "rowwise_split_input": "split",
    "rowwise_rep": "split",
    "replicated_with_grad_allreduce": "whole",
    "replicate": "whole",
    "moe_tp_experts": "experts",
    "packed_colwise": "packed",
}
EXPERTS = ("gate_up_proj", "down_proj")  # Transformers' names of the parameters of experts
EMBEDDING = "embedding_rowwise"  # only of the token embedding, which is always cut


def known_styles() -> str:
    return ", ".join(sorted([*STYLES, EMBEDDING]))


class Styles:
    """The plan of a base model, whose path in the whole model is `prefix`."""

    def __init__(self, model_type: str, plan: dict[str, str], prefix: str) -> None:
        """Raises UnsupportedModel for an unknown style; names it."""
        self._patterns: list[tuple[re.Pattern[str], Style | Literal["packed"]]] = []
        self.tables: list[str] = []  # paths of embeddings that the plan cuts
        for pattern, name in plan.items():
            if name == EMBEDDING:
                self.tables.append(prefix + pattern)
            elif name in STYLES:
                path = re.escape(prefix + pattern).replace(r"\*", r"\d+")
                self._patterns.append((re.compile(path), STYLES[name]))
            else:
                raise UnsupportedModel(
                    f"model_type {model_type!r}: {pattern} is {name!r} in Transformers' "
                    f"tensor-parallel plan, which is not supported; known are {known_styles()}"
                )

    def of(self, path: str) -> Style | None:
        """The style of the module at `path`; None if the plan does not name it."""
        style = self._find(path)
        return None if style == "packed" else style

    def are_experts(self, path: str) -> bool:
        """Whether the module at `path` has parameters of experts that are cut by their columns."""
        packed, down = (self._find(f"{path}.{name}") for name in EXPERTS)
        return (self._find(path), packed, down) == ("experts", "packed", "row")

    def _find(self, path: str) -> Style | Literal["packed"] | None:
        for pattern, style in self._patterns:
            if pattern.fullmatch(path):
                return style
        return None


def plan_of(config: Any, model_type: str) -> dict[str, str]:
    """The `base_model_tp_plan` of a Transformers config.

    Raises:
        UnsupportedModel: it has none.
    """
    plan: dict[str, str] | None = getattr(config, "base_model_tp_plan", None)
    if not plan:
        raise UnsupportedModel(
            f"model_type {model_type!r} has no file in SkyNet, and Transformers has no "
            "tensor-parallel plan (base_model_tp_plan) for it; with a file: "
            f"{', '.join(KNOWN)}"
        )
    return plan
