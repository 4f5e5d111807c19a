"""Counts NaN and infinities among weights: no model answers with them.

A head's bias may be -inf: the model suppresses that token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.tensor_plans import TensorPlan
from skynet.wire.blocks import SCALES, BlockFormat
from skynet.wire.tensor_dtypes import block_format

CHUNK_BYTES = 8 * 2**20
# By dtype: the bits of a number as an integer, and its exponent, all ones in NaN and infinities.
EXPONENTS = {
    "float32": ("<u4", 0x7F800000),
    "float16": ("<u2", 0x7C00),
    "bfloat16": ("<u2", 0x7F80),
}


def count_bad_numbers(array: npt.NDArray[Any], dtype: str, suppresses: bool = False) -> int:
    """How many numbers of a weight are NaN or infinite.

    dtype: by name; bfloat16 numbers are given as uint16.
    suppresses: -inf is none of them.
    """
    form = block_format(dtype)
    if form is not None:
        return _bad_weights(array, form)
    kind, exponent = EXPONENTS[dtype]
    bits = np.ascontiguousarray(array).view(kind)
    count = int(np.count_nonzero((bits & exponent) == exponent))
    if count and suppresses:
        minus_infinity = exponent | exponent + (exponent & -exponent)  # with the sign's bit
        count -= int(np.count_nonzero(bits == minus_infinity))
    return count


def _bad_weights(blocks: npt.NDArray[Any], form: BlockFormat) -> int:
    """How many weights of a quantised matrix have a bad scale or minimum."""
    numbers = np.ascontiguousarray(blocks[..., form.code_bytes :])
    good = np.isfinite(numbers.view(SCALES[form.scale_dtype])).all(axis=-1)
    return int(np.count_nonzero(~good)) * form.group


def bad_tensors(checkpoint: ModelSource, plans: Mapping[str, TensorPlan]) -> dict[str, int]:
    """The tensors with NaN or infinity, by their names in the checkpoint, and how many.

    Raises:
        CheckpointError: a failed read.
    """
    counts: dict[str, int] = {}
    for plan in plans.values():
        for region in plan.tile_ranges(CHUNK_BYTES):
            array = checkpoint.read(plan.source_name, plan.axis, region.start, region.stop)
            add_count(
                counts, plan.source_name, count_bad_numbers(array, plan.dtype, plan.suppresses)
            )
    return counts


def add_count(counts: dict[str, int], name: str, count: int) -> None:
    """Add to the count of a tensor, if there is anything to add."""
    if count:
        counts[name] = counts.get(name, 0) + count


def spell_counts(counts: Mapping[str, int]) -> str:
    """For messages: the first tensors, and how many numbers of each are bad."""
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:8]]
    return ", ".join(shown) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")
