"""One shard of a family without a file: a `ShardModel` whose layers are Transformers' own."""

from __future__ import annotations

import torch

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.errors import StepFailed
from skynet.layers.context import StepContext, make_context
from skynet.layers.norm import AllReduce
from skynet.layers.pooler import Pooler
from skynet.layers.reuse import LoadedWeights
from skynet.layers.shard_model import Result, ShardModel
from skynet.layers.weights import Fetch, Progress
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.transformers_backend.attention import Slots
from skynet.transformers_backend.body import Body
from skynet.transformers_backend.loader import TransformersLoader
from skynet.wire.step import Step


class TransformersShard(ShardModel):
    """Computes one shard of one stage of a plan; the same from outside as a `ShardModel`."""

    _arch: TransformersArchitecture

    def _load(
        self, part: ShardPlan, fetch: Fetch, progress: Progress | None, pieces: LoadedWeights | None
    ) -> TransformersLoader:
        """As of `ShardModel`.

        Raises:
            ConfigurationError: Transformers is not the version that described the model.
        """
        arch, plan = self._arch, self._plan
        load = TransformersLoader(arch, part, fetch, self._dtype, self._device, progress, pieces)
        body = self._body = Body(arch, plan, part, self._dtype, self._device)
        if self.layers.start == 0:
            self.weight_bytes += body.load_tokens(load)
        slots: list[Slots] = []
        for layer in range(self.layers.start, self.layers.stop):
            own, num_bytes = body.load_layer(layer, load)
            slots.append(own)
            self.weight_bytes += num_bytes
        # The parent asks its stack to lay steps out, and its head for logits: no more.
        self._stack = _Stack(arch, plan, part, slots, self._dtype, self._device)  # type: ignore[assignment]
        self._encoder = self._embedding = None
        self._head = self._pooler = None
        if self.layers.stop == arch.num_layers:
            self.weight_bytes += body.load_head(load)
            self._head = body.head  # type: ignore[assignment]
            self._pooler = Pooler(_LastNorm(body), None, None, arch.label_pooling, self._dtype)
        return load

    @torch.inference_mode()
    def run(
        self, step: Step, span: Range, hidden: torch.Tensor | None, all_reduce: AllReduce
    ) -> Result:
        """As `ShardModel.run`; the first shard has all of the hidden states after the span."""
        self._check(step, span, hidden)
        if self._stack is None:
            raise StepFailed("this slice has been taken apart")
        context = self._prepare(self._stack, step)
        if span.start == self.layers.start:
            for row in step.rows:
                if row.source is not None:
                    self._stack.copy_slot(row.source, row.slot, row.start)
        x = self._body.run(context, span.start, span.stop, hidden, all_reduce)
        if span.stop == self._arch.num_layers:
            return None, self._candidates(step, x), self._vectors(step, x)
        return (x if self._shard == 0 else torch.zeros_like(x)), [], []

    def _take_apart(self) -> None:
        super()._take_apart()
        del self._body


class _Stack:
    """What a `ShardModel` asks a `Stack` for."""

    def __init__(
        self,
        arch: TransformersArchitecture,
        plan: Plan,
        part: ShardPlan,
        slots: list[Slots],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._arch, self._plan, self._slots = arch, plan, slots
        self._dtype, self._device = dtype, device
        self._token_bytes = 2 * part.kv_heads.size * arch.head_dim * dtype.itemsize

    def prepare(self, step: Step) -> StepContext:
        """See `Stack.prepare`; ropes are the model's own."""
        windows = {own.window for own in self._slots}
        size, plan = self._arch.vocab_size, self._plan
        rest = (windows, self._token_bytes, self._dtype, self._device)
        return make_context(step, plan, size, [], *rest)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        for own in self._slots:
            own.copy_slot(source, target, tokens)


class _LastNorm:
    """What the model does after its last layer, as a reader of hidden states calls it."""

    nbytes = 0  # counted with the head

    def __init__(self, body: Body) -> None:
        self._body = body

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._body.states(x)
