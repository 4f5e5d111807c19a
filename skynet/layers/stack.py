"""The layers of one stack, a decoder's or an encoder's, that one shard of a stage computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.architecture.architecture import Architecture
from skynet.layers.alibi import PositionBias
from skynet.layers.context import StepContext, make_context
from skynet.layers.encoder_attention import Bias
from skynet.layers.layer import Layer, ParallelLayer, SequentialLayer
from skynet.layers.relative import load_relative_bias
from skynet.layers.rope import Rotary
from skynet.layers.weights import Loader
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.wire.step import Step


class Stack:
    """A run of layers, and what they share in a step. Layers have their numbers in the model."""

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
        """layers: of the stage; those of another stack are left out."""
        self.arch, self._plan, self._dtype, self._device = arch, plan, dtype, device
        first = arch.encoder_layers
        self.run = Range(first, first + arch.num_layers).overlap(layers)
        load = load.of(arch, part)
        kind = ParallelLayer if arch.parallel else SequentialLayer
        self._layers: list[Layer] = [
            kind(arch, plan, part, layer - first, load, dtype, device)
            for layer in range(self.run.start, self.run.stop)
        ]
        self._rotaries = [Rotary(rope, device) for rope in arch.rope_kinds]
        self._bias: Bias | None = None
        if arch.alibi:
            self._bias = PositionBias(arch, arch.alibi, part)
        elif arch.relative and self._layers:
            self._bias = load_relative_bias(arch, arch.relative, load, part)
        self._token_bytes = 2 * part.kv_heads.size * arch.head_dim * dtype.itemsize
        self.nbytes = sum(layer.nbytes for layer in self._layers)
        if arch.relative and self._layers:
            self.nbytes += arch.relative.buckets * arch.num_heads * 4

    def prepare(self, step: Step) -> StepContext:
        """Lay a step out for these layers; raises StepFailed as `make_context`."""
        return make_context(
            step,
            self._plan,
            self.arch.vocab_size,
            self._rotaries,
            {layer.window for layer in self._layers},
            self._token_bytes,
            self._dtype,
            self._device,
            self._bias,
            self.arch.bidirectional,
        )

    def of(self, span: Range) -> Sequence[Layer]:
        """Those of the layers that are in a span."""
        both = span.overlap(self.run)
        return self._layers[both.start - self.run.start : both.stop - self.run.start]

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `Attention.copy_slot`, of all layers at once: later a slot may be another's."""
        for layer in self._layers:
            layer.copy_slot(source, target, tokens)
