"""The state that the modules of one shard's model share in a step: context, all-reduce and span.

One object per model, which its modules refer to. It is not global: several models may run in one
process, each in another thread.
"""

from __future__ import annotations

import torch

from skynet.errors import StepFailed
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce


class Running:
    """The running step. Set before the model is called, read by its modules."""

    def __init__(self) -> None:
        self.start = self.stop = 0  # of the span
        self.given: torch.Tensor | None = None  # hidden states before `start`, (1, tokens, hidden)
        self._context: StepContext | None = None
        self._all_reduce: AllReduce | None = None

    def begin(self, context: StepContext | None, all_reduce: AllReduce | None) -> None:
        self._context, self._all_reduce = context, all_reduce

    def end(self) -> None:
        self._context = self._all_reduce = self.given = None

    @property
    def context(self) -> StepContext:
        if self._context is None:
            raise StepFailed("attention outside of a step")
        return self._context

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over the stage's shards of `partial` (tokens, width), in the same dtype."""
        return self.total(partial).to(partial.dtype)

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        """The same sum in float32."""
        if self._all_reduce is None:
            raise StepFailed("a sum outside of a step")
        return self._all_reduce(partial.contiguous())


class SpanEnd(Exception):
    """Stops the forward pass; has the hidden states at the end of a span, (1, tokens, hidden)."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden
