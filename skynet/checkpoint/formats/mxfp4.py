"""MXFP4: numbers of 4 bits (e2m1), and a power of two for 32 inputs. Exact as q8.

The layout of gpt-oss (`*_blocks` (experts, out, groups, 16), `*_scales` (experts, out, groups)) and
of compressed-tensors (the blocks of a row end to end).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.formats.matrix import Matrix
from skynet.checkpoint.formats.parts import Parts, Settings, Tensors
from skynet.checkpoint.safetensors_file import read_region
from skynet.wire.quantised import Quantised, unpack_nibbles

GROUP = 32
BLOCKS, SCALES = "_blocks", "_scales"
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def matrices(settings: Settings, tensors: Tensors) -> dict[str, Matrix]:
    """Of gpt-oss's layout: for each pair of tensors one matrix, all experts' outputs end to end.

    Raises:
        CheckpointError: tensors that do not belong together.
    """
    names = [name.removesuffix(BLOCKS) for name in tensors if name.endswith(BLOCKS)]
    return {name: _all_experts(Parts(name, tensors, name)) for name in names}


def _all_experts(parts: Parts) -> Matrix:
    *outputs, groups = parts.info(SCALES).shape
    parts.check(SCALES, (*outputs, groups), "uint8")
    parts.check(BLOCKS, (*outputs, groups, GROUP // 2), "uint8")
    shape = (int(np.prod(outputs)), groups * GROUP)
    rows = partial(_rows, parts, shape)
    return Matrix(parts.name, shape, "q8", GROUP, "float32", rows)


def _rows(parts: Parts, shape: tuple[int, int], start: int, stop: int) -> Quantised:
    widths = {BLOCKS: shape[1] // 2, SCALES: shape[1] // GROUP}
    packed, exponents = (
        read_region(
            parts.name + part, replace(parts.info(part), shape=(shape[0], width)), 0, start, stop
        )
        for part, width in widths.items()
    )
    return decode(packed, exponents)


def decode(packed: npt.NDArray[np.uint8], exponents: npt.NDArray[np.uint8]) -> Quantised:
    """packed: (out, in / 2), the first of two codes in the low bits. exponents: (out, in / 32)."""
    return Quantised("q8", GROUP, DOUBLED[unpack_nibbles(packed)], halved_powers(exponents))


def halved_powers(exponents: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Half of the numbers that e8m0 bytes mean, since codes are doubled; 255 is NaN."""
    powers = np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)
    return np.where(exponents == 255, np.float32(np.nan), powers)
