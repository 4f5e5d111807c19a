"""The published tensors that make up one quantised matrix, and the settings beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.checkpoint.safetensors_file import TensorInfo, read_region
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.wire.tensor_dtypes import from_bfloat16

Tensors = Mapping[str, TensorInfo]
Settings = Mapping[str, Any]  # the quantization_config of a config.json
FLOATS = ("float16", "bfloat16", "float32")


class Parts:
    """Reads the tensors of a module: those whose names start with `prefix`."""

    def __init__(self, prefix: str, tensors: Tensors, name: str | None = None) -> None:
        """
        prefix: "model.layers.0.mlp.up_proj.", for example.
        name: of the matrix that the parts make up; by default `prefix` and "weight".
        """
        self.prefix, self._tensors = prefix, tensors
        self.name = f"{prefix}weight" if name is None else name

    def has(self, part: str) -> bool:
        return self.prefix + part in self._tensors

    def info(self, part: str) -> TensorInfo:
        """
        Raises:
            CheckpointError: the checkpoint lacks the tensor.
        """
        if not self.has(part):
            raise CheckpointError(
                f"the checkpoint lacks {self.prefix}{part}, without which {self.name} cannot be "
                "read; download it again"
            )
        return self._tensors[self.prefix + part]

    def size(self, part: str, axis: int) -> int:
        """
        Raises:
            CheckpointError: the tensor is no matrix.
        """
        info = self.info(part)
        if len(info.shape) != 2:
            raise CheckpointError(f"{self.prefix}{part} has shape {list(info.shape)}, no matrix's")
        return info.shape[axis]

    def check(self, part: str, shape: tuple[int, ...], *dtypes: str) -> None:
        """
        Raises:
            CheckpointError: the tensor is missing, or has another shape or none of these dtypes.
        """
        info = self.info(part)
        if info.shape != shape or info.dtype not in dtypes:
            raise CheckpointError(
                f"{self.prefix}{part} is {info.dtype} {list(info.shape)}, expected "
                f"{' or '.join(dtypes)} {list(shape)}: the tensors of {self.name} do not belong "
                "together, or not to this config.json"
            )

    def read(self, part: str, axis: int = 0, start: int = 0, stop: int | None = None) -> Any:
        """The indices [start, stop) of an axis; bfloat16 widened to float32."""
        info = self.info(part)
        end = info.shape[axis] if stop is None else stop
        array = read_region(self.prefix + part, info, axis, start, end)
        return from_bfloat16(array) if info.dtype == "bfloat16" else array


def modules(tensors: Tensors, part: str) -> list[Parts]:
    """The modules that have a tensor of this name."""
    ends = [name for name in tensors if name.endswith(f".{part}")]
    return [Parts(name.removesuffix(part), tensors) for name in ends]


def require(settings: Settings, field: str, *known: Any, default: Any = None) -> Any:
    """A field of the quantization_config.

    Raises:
        UnsupportedModel: its value is none of the known ones.
    """
    value = settings.get(field, default)
    if not any(value == each and isinstance(value, type(each)) for each in known):
        shown = " or ".join(repr(each) for each in known)
        raise UnsupportedModel(
            f"quantization_config: {field} {value!r:.40} is not supported, only {shown}; use "
            "another version of this model"
        )
    return value


def group_size(settings: Settings, inputs: int) -> int:
    """The inputs that share a scale; all of them if the config says -1 or nothing.

    Raises:
        CheckpointError: it is no integer from 1 to `inputs`.
    """
    size = settings.get("group_size")
    size = inputs if size in (None, -1) else size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= inputs:
        raise CheckpointError(
            f"quantization_config: group_size {size!r:.40}, expected an integer from 1 to the "
            f"{inputs} inputs of a matrix"
        )
    return size


def unpacked(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """The codes of `bits` bits in the last axis of int32 words, lowest first: (..., codes)."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts) & (2**bits - 1)
    return codes.astype(np.uint8).reshape(*words.shape[:-1], -1)
