"""What staging reads a model from: a checkpoint as it is, or in the form in which it is staged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    from skynet.checkpoint.checkpoint import Checkpoint


class StoredTensor(Protocol):
    """A tensor's shape and dtype."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


class ModelSource(Protocol):
    """See `skynet.checkpoint.checkpoint.Checkpoint`."""

    name: str
    config: dict[str, Any]

    @property
    def original(self) -> Checkpoint:
        """The checkpoint as it is on disk."""
        ...

    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]: ...

    def text_files(self) -> dict[str, bytes]: ...

    def digest(self, progress: Callable[[int], None] | None = None) -> str: ...
