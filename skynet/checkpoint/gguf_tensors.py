"""The tensors of a GGUF file by the names of Transformers, as small as the file has them.

Matrices of blocks stay quantised. What llama.cpp's converters have changed is undone: the order of
rotary rows, and norms that have 1 added.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import staged_tensors
from skynet.checkpoint.formats.gguf_blocks import DECODERS, decode, unpack
from skynet.checkpoint.formats.matrix import reordered_rows
from skynet.errors import CheckpointError
from skynet.wire.quantised import Layout, Quantised

PIECE = re.compile(r"\.experts\.(\d+)\.")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # and their dtypes
Q4_TYPES = ("Q4_0", "Q4_1", "Q4_K")
# Models whose matrices are those of Transformers, but for the order of rows: llama.cpp's name ->
# whether the rows of queries and keys are reordered, and what is added to norms.
KEPT: dict[str, tuple[bool, float]] = {
    "llama": (True, 0.0),
    "qwen2": (False, 0.0),
    "qwen3": (False, 0.0),
    "qwen3moe": (False, 0.0),
    "phi3": (False, 0.0),
    "gemma2": (False, 1.0),
    "gemma3": (False, 1.0),
}


class GgufTensors:
    """Reads the tensors of one file that a model needs.

    rounded: the types of the matrices read so far that q8 and q4 do not hold exactly.
    """

    def __init__(self, file: Path) -> None:
        from gguf import GGUFReader

        self._file, self._reader = file, GGUFReader(file)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        field = self._reader.get_field("general.architecture")
        self.rounded: list[str] = []
        self.model = "" if field is None else str(field.contents())

    @property
    def is_kept(self) -> bool:
        """Whether the file's matrices can stay quantised."""
        return self.model in KEPT

    @property
    def layout(self) -> Layout | None:
        """The layout in which most of the file's numbers are kept; None: as numbers."""
        if not self.is_kept:
            return None
        sizes: Counter[Layout | None] = Counter()
        for tensor in self._reader.tensors:
            kind = tensor.tensor_type.name
            kept: Layout | None = "q4" if kind in Q4_TYPES else None if kind in FLOATS else "q8"
            sizes[kept] += int(tensor.n_elements)
        return sizes.most_common(1)[0][0]

    @property
    def dtype(self) -> str:
        """The dtype of most numbers of the converted model, quantised ones aside."""
        sizes: Counter[str] = Counter()
        for tensor in self._reader.tensors:
            dtype = FLOATS.get(tensor.tensor_type.name)
            if dtype is not None:
                sizes[dtype] += int(tensor.n_elements)
            elif not self.is_kept:
                sizes["float32"] += int(tensor.n_elements)
        return sizes.most_common(1)[0][0] if sizes else "float32"

    def read(self, arch: Architecture) -> Iterator[tuple[str, Quantised | npt.NDArray[Any]]]:
        """The tensors that the file has of a model, by name, in the order of its layers.

        Numbers in bfloat16 are given as their uint16 bits.

        Raises:
            CheckpointError: a tensor of another shape than the model's.
            UnsupportedModel: a type of blocks that is not supported.
        """
        paths = _name_map(self.model, arch.num_layers)
        for stored in staged_tensors(arch):
            path, _, kind = stored.name.rpartition(".")
            mapped = paths.get_name(PIECE.sub(".experts.", path))
            tensor = self._tensors.get(f"{mapped}.{kind}")
            if mapped is None or tensor is None:
                continue  # optional, or named when the converted model is opened
            piece = PIECE.search(stored.name)
            data = tensor.data if piece is None else self._piece(tensor, int(piece[1]))
            value = self._value(data, tensor.tensor_type.name, stored.shape)
            if value.shape != stored.shape:
                raise CheckpointError(
                    f"{self._file}: {tensor.name} has shape {list(value.shape)}, the model's "
                    f"{stored.name} has {list(stored.shape)}; download the file again"
                )
            yield stored.name, self._restored(arch, tensor.name, value)

    def _piece(self, tensor: Any, number: int) -> npt.NDArray[Any]:
        if number >= len(tensor.data):
            raise CheckpointError(
                f"{self._file}: {tensor.name} has {len(tensor.data)} experts, the model more"
            )
        piece: npt.NDArray[Any] = tensor.data[number]
        return piece

    def _value(
        self, data: npt.NDArray[Any], kind: str, shape: tuple[int, ...]
    ) -> Quantised | npt.NDArray[Any]:
        if kind in FLOATS:
            return _floats(data, kind)
        if len(shape) != 2:
            return unpack(data, kind)
        if kind not in DECODERS:
            self.rounded.append(kind)
        return decode(data, kind)

    def _restored(
        self, arch: Architecture, name: str, value: Quantised | npt.NDArray[Any]
    ) -> Quantised | npt.NDArray[Any]:
        """The tensor as it was before llama.cpp's converter changed it. name: llama.cpp's."""
        reordered, offset = KEPT[self.model]
        order = _row_order(arch, name) if reordered else None
        if isinstance(value, Quantised):
            return value if order is None else reordered_rows(value, order)
        if offset and name.endswith("norm.weight"):
            return value - np.float32(offset)
        return value if order is None else value[order]


def _floats(data: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    """The reader gives bfloat16 as bytes."""
    return np.ascontiguousarray(data).view(np.uint16) if kind == "BF16" else data


def _row_order(arch: Architecture, name: str) -> npt.NDArray[Any] | None:
    """Which row of the file is each of Transformers': llama.cpp has rotated pairs side by side."""
    heads = {"attn_q": arch.num_heads, "attn_k": arch.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return None
    rows = np.arange(heads * arch.head_dim)
    return rows.reshape(heads, arch.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _name_map(model: str, num_layers: int) -> Any:
    """Names of modules in Transformers -> llama.cpp's."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    numbers: Mapping[str, Any] = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    return get_tensor_name_map(numbers[model], num_layers)
