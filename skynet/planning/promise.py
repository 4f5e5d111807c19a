"""Whether greedy answers equal those of Transformers in float32, or what rounds them. Pure.

`skynet status` and `skynet check` say so in these words.
"""

from __future__ import annotations

from collections.abc import Collection

EXACT = "exact"
NARROW = ("bfloat16", "int8")  # values of SKYNET_EXCHANGE_DTYPE that round


def promise(dtype: str, kv_dtype: str | None = None, exchange_dtypes: Collection[str] = ()) -> str:
    """`EXACT`, or "rounded by" what.

    dtype: what is computed in.
    kv_dtype: what keys and values are kept in; None: `number_dtype(dtype)`.
    exchange_dtypes: SKYNET_EXCHANGE_DTYPE of the shards that exchange partials.
    """
    causes = [] if dtype == "float32" else [f"{dtype} activations"]
    causes += [f"{kv_dtype} keys and values"] if kv_dtype not in (None, "float32", dtype) else []
    causes += [f"{name} partials" for name in NARROW if name in exchange_dtypes and name != dtype]
    return f"rounded by {' and '.join(causes)}" if causes else EXACT


def spelled_out(promised: str) -> str:
    """A sentence for a result of `promise`."""
    verb = "equal" if promised == EXACT else "may, at near ties, differ from"
    return f"{promised}: tokens that are not sampled {verb} those of Transformers in float32"
