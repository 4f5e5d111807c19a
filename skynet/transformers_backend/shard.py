"""One shard of a model on the Transformers backend: a `ShardModel` with Transformers' layers."""

from __future__ import annotations

import torch

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.kernels.steps import NormWeights
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext, StepLayout, make_context
from skynet.layers.finite import no_part
from skynet.layers.norm import AllReduce
from skynet.layers.pooler import Pooler
from skynet.layers.regions import Fetch
from skynet.layers.reuse import SliceWeights
from skynet.layers.shard_model import ShardModel
from skynet.layers.stack import Stack
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range
from skynet.transformers_backend.attention import Slots
from skynet.transformers_backend.body import Body
from skynet.transformers_backend.loader import TransformersLoader
from skynet.wire.step import Step


class TransformersShard(ShardModel):
    """Computes one shard of one stage of a plan, with the interface of a `ShardModel`."""

    _arch: TransformersArchitecture

    def _load(self, part: ShardPlan, fetch: Fetch, weights: SliceWeights) -> None:
        """See `ShardModel._load`.

        Raises:
            ConfigurationError: the Transformers version is not the one that was described.
        """
        arch, kv = self._arch, KVLayout.of(self._plan)
        load = TransformersLoader(arch, part, fetch, self._dtypes, self._device, weights)
        body = self._body = Body(load, kv)
        if self.layers.start == 0:
            self.weight_bytes += body.load_tokens(load)
        layers: list[Slots] = []
        for layer in range(self.layers.start, self.layers.stop):
            slots, num_bytes = body.load_layer(layer, load)
            layers.append(slots)
            self.weight_bytes += num_bytes
        # The base class needs a stack for the layout of steps, and a head for logits; no more.
        self._stack = _Stack(load, kv, layers)  # type: ignore[assignment]
        self._encoder = self._embedding = None
        self._head = self._pooler = self._suppressed = None
        if self.layers.stop == arch.num_layers:
            self.weight_bytes += body.load_head(load)
            self._head = body.head  # type: ignore[assignment]
            self._pooler = Pooler(_LastNorm(body))

    def _forward(
        self,
        stack: Stack,
        step: Step,
        span: Range,
        hidden: torch.Tensor | None,
        all_reduce: AllReduce,
    ) -> torch.Tensor:
        """See `ShardModel._forward`; the first shard's part is the whole hidden states."""
        context = self._prepare(stack, step)
        if span.start == self.layers.start:
            stack.copy_sources(step)
        x = self._body.run(context, span, hidden, all_reduce)
        is_whole = self._shard == 0 or span.stop == self._arch.num_layers
        return x if is_whole else no_part(x)

    def _free(self) -> None:
        super()._free()
        del self._body


class _Stack:
    """The methods of `Stack` that a `ShardModel` calls."""

    def __init__(self, load: TransformersLoader, kv: KVLayout, layers: list[Slots]) -> None:
        self._layers = layers
        # Without rotaries: the model computes its ropes.
        self._layout = StepLayout.of(load, kv, {slots.window for slots in layers})

    def prepare(self, step: Step) -> StepContext:
        """See `Stack.prepare`."""
        return make_context(step, self._layout)

    def copy_sources(self, step: Step) -> None:
        """See `Stack.copy_sources`."""
        for row in step.rows:
            if row.source is not None:
                for slots in self._layers:
                    slots.copy_slot(row.source, row.slot, row.start)

    def clear(self, context: StepContext, texts: bool) -> None:
        """See `Stack.clear`."""
        for slots in self._layers:
            slots.clear_kv(context)


class _LastNorm:
    """The part of the model after its last layer, as the norm of a `Pooler`."""

    nbytes = 0  # counted with the head
    weights: NormWeights | None = None

    def __init__(self, body: Body) -> None:
        self._body = body

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._body.states(x)
