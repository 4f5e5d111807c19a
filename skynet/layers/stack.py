"""The layers of one stack, the decoder or the encoder, that one shard of a stage computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skynet.kernels.library import kernels
from skynet.kernels.steps import StepKernels
from skynet.layers.alibi import AlibiBias
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext, StepLayout, make_context
from skynet.layers.disentangled import distance_table_bytes
from skynet.layers.encoder_attention import Bias
from skynet.layers.layer import Layer, load_layer
from skynet.layers.norm import AllReduce
from skynet.layers.relative import load_relative_bias
from skynet.layers.rope import Rotary
from skynet.layers.shared_kv import SharedKV
from skynet.layers.side_runs import SideRuns
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range
from skynet.wire.step import Step


class Stack:
    """A run of layers, numbered as in the model, and the layout that they share in a step."""

    def __init__(self, load: Loader, kv: KVLayout, layers: Range) -> None:
        """layers: of the stage; those of another stack are left out."""
        arch, first = load.arch, load.arch.encoder_layers
        self.run = Range(first, first + arch.num_layers).overlap(layers)
        bias = self._bias(load)
        step_kernels = _step_kernels(load, kv, bias)
        self._layers: list[Layer] = [
            load_layer(load, kv, layer - first, step_kernels)
            for layer in range(self.run.start, self.run.stop)
        ]
        self._sides = SideRuns(self._layers, step_kernels)
        self.shared = SharedKV(load, kv, self._layers, self.run)
        rotaries = [Rotary(rope, load.device) for rope in arch.rope_kinds]
        windows = {window for layer in self._layers for window in layer.windows}
        self._layout = StepLayout.of(load, kv, windows, rotaries, bias, step_kernels)
        self.nbytes = sum(layer.nbytes for layer in self._layers)
        if arch.relative and self._layers:
            self.nbytes += arch.relative.buckets * arch.num_heads * 4
        if arch.disentangled and self._layers:
            self.nbytes += distance_table_bytes(load)

    def _bias(self, load: Loader) -> Bias | None:
        """The score bias that all layers share."""
        arch = load.arch
        if arch.alibi:
            return AlibiBias(arch, arch.alibi, load.part)
        return load_relative_bias(load, arch.relative) if arch.relative and self.run.size else None

    def prepare(self, step: Step) -> StepContext:
        """Lay a step out for these layers; raises StepFailed as `make_context`."""
        return make_context(step, self._layout)

    def of(self, span: Range) -> Sequence[Layer]:
        """The layers that are in a span."""
        numbers = self._numbers(span)
        return self._layers[numbers.start : numbers.stop]

    def _numbers(self, span: Range) -> Range:
        """The layers that are in a span, counted from this stack's first."""
        both = span.overlap(self.run)
        if not both.size:
            return Range(0, 0)
        return Range(both.start - self.run.start, both.stop - self.run.start)

    def forward(
        self, x: torch.Tensor, span: Range, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """The whole hidden states after the layers of a span, (tokens, hidden) float32."""
        return self._sides(x, self._numbers(span), context, all_reduce)

    def part(
        self, x: torch.Tensor, span: Range, context: StepContext, first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        """This shard's part of the same; see `Residual.part`."""
        numbers = self._numbers(span)
        x = self._sides(x, numbers, context, all_reduce, but_last=True)
        block, after = self._layers[numbers.stop - 1].sides[-1]
        return after.part(x, block(x, context, all_reduce), first, all_reduce)

    def copy_sources(self, step: Step) -> None:
        """Copy the slots that rows continue from.

        In all layers at once: by the next span a source may hold another sequence.
        """
        for row in step.rows:
            if row.source is not None:
                for layer in self._layers:
                    layer.copy_slot(row.source, row.slot, row.start)
                for cache in self.shared.copies.values():
                    cache.copy_slot(row.source, row.slot, row.start)

    def clear(self, context: StepContext, texts: bool) -> None:
        """Undo what a step has written, if NaN may be in it.

        texts: the step's rows are texts, which have encoder KV.
        """
        for layer in self._layers:
            layer.clear_encoder_kv(context) if texts else layer.clear(context)
        for cache in self.shared.copies.values():
            cache.clear(context.slots, context.positions)


def _step_kernels(load: Loader, kv: KVLayout, bias: Bias | None) -> StepKernels | None:
    """The kernels for decoding steps, where this stack can use them: in float32 on a CPU."""
    computes = load.device.type == "cpu" and load.dtype == torch.float32
    library = kernels() if computes and not load.arch.bidirectional else None
    if library is None:
        return None
    return StepKernels(library, None if bias is None else bias.by_distance(kv.slot_tokens))
