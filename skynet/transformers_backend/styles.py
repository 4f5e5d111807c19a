"""Transformers' tensor-parallel plan of a model: which module has which style, and what we do then.

A plan is a pattern of paths to the name of a style, as `transformers.distributed` has them: "*"
stands for the number of a layer. A style that is not known is refused, not guessed.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from skynet.architecture.transformers_model import Style
from skynet.errors import UnsupportedModel
from skynet.models.registry import KNOWN

# Transformers' names, old spellings included, and what is done with such a module. The parameters
# of "experts" are packed_colwise and rowwise.
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
EXPERTS = ("gate_up_proj", "down_proj")  # what Transformers calls the parameters of experts
EMBEDDING = "embedding_rowwise"  # of the tokens' table alone, which we cut in any case


def known_styles() -> str:
    return ", ".join(sorted([*STYLES, EMBEDDING]))


class Styles:
    """The plan of one model's base, `prefix` being the base's path in the whole model."""

    def __init__(self, model_type: str, plan: dict[str, str], prefix: str) -> None:
        """Raises UnsupportedModel, by name, for a style that is not known."""
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
                    f"tensor-parallel plan, which is not run; known are {known_styles()}"
                )

    def of(self, path: str) -> Style | None:
        """The style of the module at `path`; None of one that the plan does not name."""
        style = self._find(path)
        return None if style == "packed" else style

    def are_experts(self, path: str) -> bool:
        """Are the parameters of the module at `path` those of experts, cut by their columns?"""
        packed, down = (self._find(f"{path}.{name}") for name in EXPERTS)
        return (self._find(path), packed, down) == ("experts", "packed", "row")

    def _find(self, path: str) -> Style | Literal["packed"] | None:
        for pattern, style in self._patterns:
            if pattern.fullmatch(path):
                return style
        return None


def plan_of(config: Any, model_type: str) -> dict[str, str]:
    """The `base_model_tp_plan` of a config of Transformers.

    Raises:
        UnsupportedModel: there is none.
    """
    plan: dict[str, str] | None = getattr(config, "base_model_tp_plan", None)
    if not plan:
        raise UnsupportedModel(
            f"model_type {model_type!r} has no file in SkyNet, and Transformers has no "
            "tensor-parallel plan (base_model_tp_plan) of it to cut it by; with a file: "
            f"{', '.join(KNOWN)}"
        )
    return plan
