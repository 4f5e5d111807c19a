"""Blocks of GGUF files as `Quantised` matrices.

A row of a matrix is a series of blocks. The layout of each type is that of `ggml-quants.c`; types
without a decoder here, and those whose numbers q8 cannot hold, are unpacked by the gguf package and
rounded to q8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.formats import mxfp4
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.wire.quantised import Quantised, pack_nibbles, quantise

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.int8]
Numbers = npt.NDArray[np.float32]
# Codes (blocks, groups, group), and scales and minimums (blocks, groups).
Parts = tuple[Codes, Numbers, Numbers | None]

HALVES = np.array([0, 4], np.uint8)
QUARTERS = np.array([0, 2, 4, 6], np.uint8)
BITS = np.arange(8, dtype=np.uint8)
GROUP = 32  # of matrices that are rounded
NON_LINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)  # codes of IQ4


def _half(field: Bytes) -> Numbers:
    """(blocks, 1) from the two bytes of a float16."""
    return np.ascontiguousarray(field).view(np.float16).astype(np.float32)


def _nibbles(field: Bytes, run: int) -> Bytes:
    """Runs of `run` bytes: all low halves of a run, then all high ones."""
    runs = field.reshape(len(field), -1, 1, run)
    codes: Bytes = (runs >> HALVES[:, None]) & np.uint8(15)
    return codes.reshape(len(field), -1)


def _q4_0(block: Bytes) -> Parts:
    scale = _half(block[:, :2])
    return _nibbles(block[:, 2:], 16)[:, None], scale, -8 * scale


def _q4_1(block: Bytes) -> Parts:
    return _nibbles(block[:, 4:], 16)[:, None], _half(block[:, :2]), _half(block[:, 2:4])


def _q5_0(block: Bytes) -> Parts:
    high = np.unpackbits(block[:, 2:6], axis=1, bitorder="little")
    codes = (_nibbles(block[:, 6:], 16) | high << 4).astype(np.int8) - np.int8(16)
    return codes[:, None], _half(block[:, :2]), None


def _q8_0(block: Bytes) -> Parts:
    return block[:, 2:].view(np.int8)[:, None], _half(block[:, :2]), None


def _q2_k(block: Bytes) -> Parts:
    scales, packed = block[:, :16], block[:, 16:80].reshape(-1, 2, 1, 32)
    codes = (packed >> QUARTERS[:, None]) & 3
    return (
        codes.reshape(-1, 16, 16),
        _half(block[:, 80:82]) * (scales & 15),
        -_half(block[:, 82:84]) * (scales >> 4),
    )


def _q3_k(block: Bytes) -> Parts:
    packed = block[:, 32:96].reshape(-1, 2, 1, 32)
    low = ((packed >> QUARTERS[:, None]) & 3).reshape(-1, 16, 16)
    high = ((block[:, None, :32] >> BITS[:, None]) & 1).reshape(-1, 16, 16)
    scales_low = _nibbles(block[:, 96:104], 8)
    scales_high = ((block[:, None, 104:108] >> QUARTERS[:, None]) & 3).reshape(-1, 16)
    scale = _half(block[:, 108:110]) * ((scales_low | scales_high << 4).astype(np.float32) - 32)
    return low | high << 2, scale, -4 * scale


def _q4_k(block: Bytes) -> Parts:
    scale, minimum = _k_scales(block)
    return _nibbles(block[:, 16:], 32).reshape(-1, 8, 32), scale, minimum


def _q6_k(block: Bytes) -> Parts:
    low = _nibbles(block[:, :128], 64)
    high = (block[:, 128:192].reshape(-1, 2, 1, 32) >> QUARTERS[:, None]) & 3
    codes = (low | high.reshape(-1, 256) << 4).astype(np.int8) - np.int8(32)
    scale = _half(block[:, 208:]) * block[:, 192:208].view(np.int8)
    return codes.reshape(-1, 16, 16), scale, None


def _k_scales(block: Bytes) -> tuple[Numbers, Numbers]:
    """Scales and minimums of the 8 groups of Q4_K: 6 bits each, and two float16 factors."""
    first, second, third = block[:, 4:8], block[:, 8:12], block[:, 12:16]
    scales = np.hstack([first & 63, (third & 15) | (first >> 2 & 48)])
    minimums = np.hstack([second & 63, (third >> 4) | (second >> 2 & 48)])
    return _half(block[:, :2]) * scales, -_half(block[:, 2:4]) * minimums


def _iq4_nl(block: Bytes) -> Parts:
    return NON_LINEAR[_nibbles(block[:, 2:], 16)][:, None], _half(block[:, :2]), None


def _iq4_xs(block: Bytes) -> Parts:
    low = ((block[:, 4:8, None] >> HALVES) & 15).reshape(-1, 8)
    high = ((block[:, 2:4, None] >> QUARTERS) & 3).reshape(-1, 8)
    scale = _half(block[:, :2]) * ((low | high << 4).astype(np.float32) - 32)
    return NON_LINEAR[_nibbles(block[:, 8:], 16)].reshape(-1, 8, 32), scale, None


def _mxfp4(block: Bytes) -> Parts:
    codes = mxfp4.DOUBLED[_nibbles(block[:, 1:], 16)]
    return codes[:, None], mxfp4.halved_powers(block[:, :1]), None


# Type -> its decoder and the dtype that holds its scales exactly.
DECODERS: dict[str, tuple[Callable[[Bytes], Parts], type[Any]]] = {
    "Q4_0": (_q4_0, np.float16),
    "Q4_1": (_q4_1, np.float16),
    "Q5_0": (_q5_0, np.float16),
    "Q8_0": (_q8_0, np.float16),
    "Q2_K": (_q2_k, np.float32),
    "Q3_K": (_q3_k, np.float32),
    "Q4_K": (_q4_k, np.float32),
    "Q6_K": (_q6_k, np.float32),
    "IQ4_NL": (_iq4_nl, np.float16),
    "IQ4_XS": (_iq4_xs, np.float32),
    "MXFP4": (_mxfp4, np.float32),
}


def decode(rows: Bytes, kind: str) -> Quantised:
    """The matrix of these rows (out, bytes of a row), of blocks of the type `kind`, such as "Q4_K".

    Exact for the types of `DECODERS`; others are rounded to q8.

    Raises:
        CheckpointError: rows that are not whole blocks.
        UnsupportedModel: a type that the gguf package cannot unpack.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    type_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    if rows.ndim != 2 or not rows.size or rows.shape[1] % type_bytes:
        raise CheckpointError(f"rows of {rows.shape} bytes are no blocks of {kind} ({type_bytes})")
    if kind not in DECODERS:
        return quantise(unpack(rows, kind), "q8", GROUP)
    decoder, dtype = DECODERS[kind]
    codes, scales, minimums = decoder(np.ascontiguousarray(rows).reshape(-1, type_bytes))
    codes = codes.reshape(len(rows), -1)
    scales = scales.astype(dtype).reshape(len(rows), -1)
    group = codes.shape[1] // max(1, scales.shape[1])
    if minimums is None:
        return Quantised("q8", group, codes, scales)
    minimums = minimums.astype(dtype).reshape(len(rows), -1)
    return Quantised("q4", group, pack_nibbles(codes.view(np.uint8)), scales, minimums)


def unpack(rows: Bytes, kind: str) -> Numbers:
    """The numbers of these rows, (out, in), by the gguf package.

    Raises:
        UnsupportedModel: a type that the package does not know.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        return np.asarray(dequantize(rows, GGMLQuantizationType[kind]), dtype=np.float32)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"GGUF tensors of type {kind} are not supported; use a file of another type, such as "
            "Q4_K_M or Q8_0"
        ) from error
