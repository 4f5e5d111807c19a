"""One shard of an encoder-decoder's encoder: from whole texts to what the decoder remembers."""

from __future__ import annotations

import torch

from skynet.architecture.architecture import Architecture
from skynet.errors import StepFailed
from skynet.layers.context import StepContext
from skynet.layers.embedding import load_embedding
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.stack import Stack
from skynet.layers.weights import Loader
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.wire.step import Step


class Encoder:
    """What of the encoder lies in one stage: its embedding, layers, or last norm, or none."""

    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        part: ShardPlan,
        layers: Range,
        load: Loader,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """layers: of the stage."""
        self._device, self._last = device, arch.num_layers
        load = load.of(arch, part)
        self.stack = Stack(arch, plan, part, layers, load, dtype, device)
        self.embedding = load_embedding(arch, load, part.vocab) if 0 in layers else None
        # The stage of the decoder's first layer norms: no sum of parts is a norm's value.
        self._norm = None
        if self._last in layers:
            self._norm = load_norm(arch, load, "final_norm", None, torch.float32)
        parts = (self.stack, self.embedding, self._norm)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def run(
        self,
        step: Step,
        context: StepContext,
        span: Range,
        hidden: torch.Tensor | None,
        first: bool,
        all_reduce: AllReduce,
    ) -> tuple[torch.Tensor, bool]:
        """(tokens, hidden) float32 after the encoder's layers of `span`, and whether that is whole.

        It is whole where the decoder's layers follow within the span; else it is this shard's part,
        of which a plain sum over the shards is the value.
        """
        x = self._start(context, hidden, all_reduce)
        layers = self.stack.of(span)
        if span.stop <= self._last:
            for layer in layers[:-1]:
                x = layer(x, context, all_reduce)
            return layers[-1].part(x, context, first, all_reduce), False
        for layer in layers:
            x = layer(x, context, all_reduce)
        if span.start <= self._last:
            if self._norm is None:
                raise StepFailed("this stage has no norm of what the encoder has read")
            x = self._norm(x)
        return x, True

    def _start(
        self, context: StepContext, hidden: torch.Tensor | None, all_reduce: AllReduce
    ) -> torch.Tensor:
        if hidden is not None:
            return hidden.to(self._device)
        if self.embedding is None:
            raise StepFailed("this stage has no embedding of the encoder")
        x = all_reduce(self.embedding.partial(context.ids))
        return self.embedding.complete(x, context.ids, context.positions)
