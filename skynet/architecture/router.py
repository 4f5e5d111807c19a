"""How a mixture of experts chooses the experts of a token, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Router:
    """The router's logits become scores, the experts with the best scores are chosen, and their
    scores become weights.

    score: "softmax" or "sigmoid" of all logits; "chosen": softmax of the chosen logits alone.
    biased: a vector, `router_bias`, is added to scores to choose by, and not to weights
        (DeepSeek-V3, 2024, arXiv:2412.19437, section 2.1.2).
    groups, groups_per_token: experts are chosen from the best groups only; 0: from all.
    group_score: a group's is the largest of its experts' scores, or the sum of its two largest.
    sum_to_one: weights are divided by their sum, plus `epsilon`.
    scale: multiplies the weights.
    of_inputs: weights multiply the experts' inputs, not their outputs.
    """

    score: Literal["softmax", "sigmoid", "chosen"] = "softmax"
    biased: bool = False
    groups: int = 0
    groups_per_token: int = 0
    group_score: Literal["max", "top2"] = "max"
    sum_to_one: bool = True
    epsilon: float = 0.0
    scale: float = 1.0
    of_inputs: bool = False


SOFTMAX = Router()
