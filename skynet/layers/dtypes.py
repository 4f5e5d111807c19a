"""The dtypes of a plan: what is computed in, and what the weights of products are kept in."""

from __future__ import annotations

from typing import NamedTuple

import torch

from skynet.planning.plan import INT8, Plan

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    INT8: torch.float32,
}


class Dtypes(NamedTuple):
    """compute: of activations, biases, keys and values; weights: of products and tables.

    int8: quantised products round their activations to int8.
    """

    compute: torch.dtype
    weights: torch.dtype
    int8: bool = False

    @classmethod
    def of(cls, plan: Plan) -> Dtypes:
        return cls(DTYPES[plan.dtype], DTYPES[plan.weight_dtype], plan.dtype == INT8)
