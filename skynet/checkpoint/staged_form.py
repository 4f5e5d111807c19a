"""A checkpoint with its weights in the form in which they are staged.

Matrices are quantised, or rounded to bfloat16, tile by tile while they are read. Those that are
quantised in the checkpoint's files stay so, unless another form is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skynet.architecture.architecture import Architecture
from skynet.architecture.config import QUANTISED
from skynet.architecture.quantisable import format_of
from skynet.architecture.stored import matrix_shape, stored_shape
from skynet.architecture.tensors import resolve_names, stored_weights
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.architecture.weight import Weight
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.float_regions import (
    NUMBERS,
    FloatRegions,
    NumberRegions,
    SourceRegions,
    to_bfloat16,
)
from skynet.checkpoint.model_source import ModelSource, StoredTensor
from skynet.checkpoint.quantised_source import QuantisedSource
from skynet.errors import CheckpointError, PlanError, UnsupportedModel
from skynet.models.registry import load_architecture
from skynet.wire.blocks import BlockFormat, to_blocks
from skynet.wire.quantised import Layout, quantise

LAYOUTS: dict[str, Layout] = {"q8": "q8", "q4": "q4"}
WEIGHTS = ("bf16", *LAYOUTS)
EMBEDDINGS = ("embed", "head")  # roles

Read = Callable[[int, int, int], npt.NDArray[Any]]  # axis, start, stop


def in_staged_form(
    checkpoint: Checkpoint, weights: str | None = None, keep_embeddings: bool = False
) -> ModelSource:
    """The checkpoint with its weights as `weights` says, one of `WEIGHTS`; None: as they are.

    keep_embeddings: of embedding and head, the checkpoint's numbers are kept.

    Raises:
        PlanError: another word.
        UnsupportedModel: the model does not run with quantised weights.
        CheckpointError: tensors are missing or do not fit the config.
    """
    if weights is not None and weights not in WEIGHTS:
        raise PlanError(f"weights {weights!r} is not supported; known: {list(WEIGHTS)}")
    if weights is None and not checkpoint.quantised:
        return checkpoint
    return StagedForm(checkpoint, weights, keep_embeddings)


@dataclass(frozen=True)
class _Changed:
    """A tensor that is staged in another form than the file's."""

    shape: tuple[int, ...]
    dtype: str
    read: Read


class StagedForm:
    """A `ModelSource`: see `in_staged_form`."""

    def __init__(self, checkpoint: Checkpoint, weights: str | None, keep_embeddings: bool) -> None:
        self.original, self.name = checkpoint, checkpoint.name
        self._weights, self._keep_embeddings = weights, keep_embeddings
        arch = load_architecture(checkpoint.config)
        if weights in LAYOUTS and isinstance(arch, TransformersArchitecture):
            raise UnsupportedModel(
                f"weights {weights}: {arch.model_type!r} runs on the Transformers backend, which "
                "takes no quantised weights; use bf16, or leave the weights as they are"
            )
        names = resolve_names(arch, checkpoint.tensors)
        self._changed: dict[str, _Changed] = {}
        formats: dict[str, str] = {}
        for stack, weight, tensor in stored_weights(arch):
            name = names[tensor]
            form = self._form(stack, weight, name)
            if form is not None:
                formats[tensor] = str(form)
            changed = self._change(stack, weight, name, form)
            if changed is not None:
                self._changed[name] = changed
        self.config = {**checkpoint.config, **({QUANTISED: formats} if formats else {})}

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return {**self.original.tensors, **self._changed}

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        """See `Checkpoint.read`; of a quantised matrix its blocks."""
        changed = self._changed.get(name)
        if changed is None:
            return self.original.read(name, axis, start, stop)
        return changed.read(axis, start, stop)

    def text_files(self) -> dict[str, bytes]:
        return self.original.text_files()

    def digest(self, progress: Callable[[int], None] | None = None) -> str:
        """Digest of checkpoint and form of weights: each form is a separate model."""
        form = [self._weights, self.config.get(QUANTISED)]
        content = f"{self.original.digest(progress)} {json.dumps(form, sort_keys=True)}"
        return hashlib.sha256(content.encode()).hexdigest()

    def _form(self, arch: Architecture, weight: Weight, name: str) -> BlockFormat | None:
        """The blocks in which a tensor is staged; None for numbers."""
        source, dtype = self.original.quantised.get(name), self.original.tensors[name].dtype
        wanted = None if self._is_kept(weight) else self._weights
        if source is not None and wanted in (None, source.layout):
            return format_of(arch, weight, source.layout, source.group, source.scale_dtype)
        if wanted not in LAYOUTS or (source is None and dtype not in NUMBERS):
            return None
        return format_of(arch, weight, LAYOUTS[wanted])

    def _change(
        self, arch: Architecture, weight: Weight, name: str, form: BlockFormat | None
    ) -> _Changed | None:
        """How a tensor is read in its form; None: as it is in the file."""
        info, source = self.original.tensors[name], self.original.quantised.get(name)
        if source is not None:
            _check_shape(arch, weight, name, source)
        elif info.dtype not in NUMBERS or len(info.shape) != 2:
            return None
        numbers: FloatRegions = (
            NumberRegions(self.original, name, weight.transposed)
            if source is None
            else SourceRegions(source)
        )
        if form is not None:
            shape = stored_shape(arch, weight, form)
            if source is not None and source.layout == form.layout:
                return _Changed(shape, str(form), _stored_blocks(source, form))
            return _Changed(shape, str(form), _quantised_blocks(numbers, form))
        if self._weights == "bf16" and not self._is_kept(weight):
            return _Changed(info.shape, "bfloat16", _numbers(numbers, weight, to_bfloat16))
        if source is None:
            return None
        shape = stored_shape(arch, weight)
        return _Changed(shape, "float32", _numbers(numbers, weight, np.ascontiguousarray))

    def _is_kept(self, weight: Weight) -> bool:
        return self._keep_embeddings and weight.role in EMBEDDINGS


def _check_shape(arch: Architecture, weight: Weight, name: str, source: QuantisedSource) -> None:
    expected = matrix_shape(arch, weight) if len(arch.shape(weight)) == 2 else arch.shape(weight)
    if source.shape != expected:
        raise CheckpointError(
            f"tensor {name} has shape {list(source.shape)}, the config says {list(expected)}: "
            "config.json and the weights do not belong together"
        )


def _quantised_blocks(numbers: FloatRegions, form: BlockFormat) -> Read:
    """Blocks of numbers, rounded to the nearest codes."""

    def read(axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        unit = form.group if axis == 1 else 1
        region = numbers(axis, start * unit, stop * unit)
        return to_blocks(quantise(region, form.layout, form.group))

    return read


def _stored_blocks(source: QuantisedSource, form: BlockFormat) -> Read:
    """Blocks with the codes and scales of the file, in groups that may be smaller."""

    def read(axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        if axis == 0:
            return to_blocks(source.read(0, start, stop).regrouped(form.group))
        times = source.group // form.group
        first, last = start // times, -(-stop // times)
        matrix = source.read(1, first * source.group, last * source.group).regrouped(form.group)
        blocks = to_blocks(matrix)[:, start - first * times : stop - first * times]
        return np.ascontiguousarray(blocks)

    return read


def _numbers(
    numbers: FloatRegions, weight: Weight, convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Read:
    """Numbers in the orientation in which the weight is stored."""

    def read(axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        region = numbers(axis ^ weight.transposed, start, stop)
        return convert(region.T if weight.transposed else region)

    return read
