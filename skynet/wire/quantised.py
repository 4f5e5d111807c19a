"""Quantised matrices, as they are staged, sent and kept: codes, and a scale for some inputs each.

Two layouts hold every format that is read: **q8**, signed codes and scales; **q4**, unsigned codes,
scales and minimums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skynet.errors import WireError

Layout = Literal["q8", "q4"]
GROUP = 32  # inputs that share a scale, where nothing else decides


@dataclass(frozen=True)
class Quantised:
    """A matrix of shape (out, in), in groups of `group` consecutive inputs of an output.

    q8: weight = scale x code. codes: int8 (out, in); minimums: None.
    q4: weight = scale x code + minimum. codes: uint8 (out, in / 2), input 2i in the low four bits
        of byte i and input 2i + 1 in the high four.
    scales, minimums: (out, in / group), both float16 or both float32.
    """

    layout: Layout
    group: int
    codes: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    minimums: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Raises WireError: dtypes or shapes that do not belong together."""
        per_byte, code = (1, np.int8) if self.layout == "q8" else (2, np.uint8)
        outputs, inputs = self.shape
        parts = [self.scales] + ([] if self.minimums is None else [self.minimums])
        if (
            self.codes.dtype != code
            or self.scales.dtype not in (np.float16, np.float32)
            or self.group < 2
            or self.group % 2
            or self.codes.shape != (outputs, inputs // per_byte)
            or (self.minimums is None) != (self.layout == "q8")
            or any(part.dtype != self.scales.dtype for part in parts)
            or any(part.shape != (outputs, inputs // self.group) for part in parts)
            or inputs % self.group
        ):
            shapes = [(part.dtype.name, part.shape) for part in (self.codes, *parts)]
            raise WireError(f"no {self.layout} matrix with groups of {self.group}: {shapes}")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        outputs, width = self.codes.shape
        return outputs, width * (1 if self.layout == "q8" else 2)

    @property
    def nbytes(self) -> int:
        minimums = 0 if self.minimums is None else self.minimums.nbytes
        return self.codes.nbytes + self.scales.nbytes + minimums

    def dequantised(self) -> npt.NDArray[np.float32]:
        """The weights, (out, in) float32: the definition of what the codes mean."""
        codes = self.codes if self.layout == "q8" else unpack_nibbles(self.codes)
        grouped = codes.reshape(len(codes), -1, self.group).astype(np.float32)
        grouped *= self.scales.astype(np.float32)[:, :, None]
        if self.minimums is not None:
            grouped += self.minimums.astype(np.float32)[:, :, None]
        return grouped.reshape(self.shape)

    def regrouped(self, group: int) -> Quantised:
        """The same weights in smaller groups, of a size that divides the present one."""
        times = self.group // group
        if group < 2 or self.group % group:
            raise WireError(f"groups of {self.group} cannot become groups of {group}")
        if times == 1:
            return self
        minimums = None if self.minimums is None else self.minimums.repeat(times, axis=1)
        return replace(
            self, group=group, scales=self.scales.repeat(times, axis=1), minimums=minimums
        )


def quantise(weight: npt.NDArray[np.float32], layout: Layout, group: int = GROUP) -> Quantised:
    """The nearest codes of a matrix (out, in), and float16 scales (and minimums).

    q8: the largest magnitude of a group becomes 127. q4: a group's least and largest numbers become
    0 and 15. Codes are chosen for the scales as rounded to float16.
    """
    outputs, inputs = weight.shape
    grouped = weight.reshape(outputs, inputs // group, group)
    if layout == "q8":
        scales = (np.abs(grouped).max(axis=2) / 127).astype(np.float16)
        codes = np.rint(grouped * _inverse(scales)).clip(-127, 127).astype(np.int8)
        return Quantised("q8", group, codes.reshape(outputs, inputs), scales)
    minimums = grouped.min(axis=2).astype(np.float16)
    scales = ((grouped.max(axis=2) - minimums.astype(np.float32)) / 15).astype(np.float16)
    shifted = grouped - minimums.astype(np.float32)[:, :, None]
    unsigned = np.rint(shifted * _inverse(scales)).clip(0, 15).astype(np.uint8)
    return Quantised("q4", group, pack_nibbles(unsigned.reshape(outputs, -1)), scales, minimums)


def pack_nibbles(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Codes below 16, (out, in), to (out, in / 2): see `Quantised`."""
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).astype(np.uint8)


def unpack_nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The inverse of `pack_nibbles`."""
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), dtype=np.uint8)
    codes[:, ::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes


def _inverse(scales: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """1 / scale for each input of a group; 0 where all weights of the group are 0."""
    wide = scales.astype(np.float32)[:, :, None]
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
