"""Weights of all experts in one tensor of a file, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Packed:
    """Where a file may have the matrices of all experts of a layer, instead of one by one.

    The tensor's first axis counts experts; where the tensor is a matrix, it counts the rows of all
    experts, end to end. The other axes are one expert's (out, in). Of a tensor whose codes and
    scales are rows of outputs (MXFP4), they are that whatever `transposed` says.

    tensor: its whole name, with `{layer}`.
    bias: the name of the biases (experts, out); "": none.
    transposed: an expert's axes are (in, out).
    part, parts: the tensor's outputs are those of several weights, of which this one is number
        `part`: end to end, or if `interleaved`, in turns.
    """

    tensor: str
    bias: str = ""
    transposed: bool = False
    part: int = 0
    parts: int = 1
    interleaved: bool = False

    def outputs(self, start: int, stop: int, size: int) -> slice:
        """Outputs [start, stop) of this weight, which has `size`, among those of the tensor."""
        if self.interleaved:
            return slice(start * self.parts + self.part, stop * self.parts, self.parts)
        return slice(self.part * size + start, self.part * size + stop)
