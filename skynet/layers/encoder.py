"""One shard of an encoder-decoder's encoder: from whole texts to the encoder's output."""

from __future__ import annotations

import torch

from skynet.errors import StepFailed
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.embedding import load_embedding
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.stack import Stack
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range


class Encoder:
    """The part of the encoder in one stage: its embedding, layers or last norm, or none of them."""

    def __init__(self, load: Loader, kv: KVLayout, layers: Range) -> None:
        """load: of the encoder's weights; layers: of the stage."""
        self._device, self._last = load.device, load.arch.num_layers
        self.stack = Stack(load, kv, layers)
        self.embedding = load_embedding(load) if 0 in layers else None
        # A norm is not a sum of parts, so the stage of the decoder's first layer computes it.
        self._norm = None
        if self._last in layers:
            self._norm = load_norm(load, "final_norm", dtype=torch.float32)
        parts = (self.stack, self.embedding, self._norm)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def run(
        self,
        context: StepContext,
        span: Range,
        hidden: torch.Tensor | None,
        first: bool,
        all_reduce: AllReduce,
    ) -> tuple[torch.Tensor, bool]:
        """(tokens, hidden) float32 after the encoder's layers of `span`, and whether that is whole.

        It is whole where decoder layers follow within the span; else it is this shard's part, and
        the sum of the parts over the shards is the value.
        """
        x = self._start(context, hidden, all_reduce)
        if span.stop <= self._last:
            return self.stack.part(x, span, context, first, all_reduce), False
        x = self.stack.forward(x, span, context, all_reduce)
        if span.start <= self._last:
            if self._norm is None:
                raise StepFailed("this stage has no norm of the encoder's output")
            x = self._norm(x)
        return x, True

    def _start(
        self, context: StepContext, hidden: torch.Tensor | None, all_reduce: AllReduce
    ) -> torch.Tensor:
        if hidden is not None:
            return hidden.to(self._device)
        if self.embedding is None:
            raise StepFailed("this stage has no embedding of the encoder")
        return self.embedding(context.ids, context.positions, all_reduce)
