"""MXFP4: numbers of 4 bits (e2m1), and a power of two for 32 inputs. Exact as q8.

The layout of gpt-oss (`*_blocks` (out, groups, 16), `*_scales` (out, groups)) and of
compressed-tensors (the blocks of a row end to end).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skynet.wire.quantised import Quantised, unpack_nibbles

GROUP = 32
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def decode(packed: npt.NDArray[np.uint8], exponents: npt.NDArray[np.uint8]) -> Quantised:
    """packed: (out, in / 2), the first of two codes in the low bits. exponents: (out, in / 32)."""
    return Quantised("q8", GROUP, DOUBLED[unpack_nibbles(packed)], halved_powers(exponents))


def halved_powers(exponents: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Half of the numbers that e8m0 bytes mean, since codes are doubled; 255 is NaN."""
    powers = np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)
    return np.where(exponents == 255, np.float32(np.nan), powers)
