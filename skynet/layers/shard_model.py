"""One shard of a model: its weights, its KV slots, and how it runs a span of layers.

Knows no transport: weights come by `Fetch`, sums by `AllReduce`.
"""

from __future__ import annotations

import torch

from skynet.architecture.architecture import Architecture
from skynet.errors import StepFailed
from skynet.layers.candidates import pick
from skynet.layers.context import StepContext
from skynet.layers.embedding import Embedding, load_embedding
from skynet.layers.encoder import Encoder
from skynet.layers.head import load_head
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.pooler import Vector, load_pooler
from skynet.layers.reuse import LoadedWeights
from skynet.layers.stack import Stack
from skynet.layers.weights import Fetch, Loader, Progress
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.wire.step import Candidates, LogitsRequest, Step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Result = tuple[torch.Tensor | None, list[Candidates], list[Vector]]


class ShardModel:
    """Computes one shard of one stage of a plan. Not thread-safe: a step at a time."""

    @torch.inference_mode()
    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        stage: int,
        shard: int,
        fetch: Fetch,
        device: str = "cpu",
        progress: Progress | None = None,
        kept: ShardModel | None = None,
        consume: bool = False,
    ) -> None:
        """Load the slice; `progress` is told the bytes of each tensor as it is fetched.

        kept: a model of an earlier plan; what it has of this slice is not fetched again.
        consume: take that model apart on the way, so that there are never two slices; it cannot
            compute any more then.
        """
        self._arch, self._plan, self._shard = arch, plan, shard
        self.layers = plan.stages[stage].layers
        part = plan.stages[stage].shards[shard]
        self._vocab, self._device = part.vocab, torch.device(device)
        self._dtype = DTYPES[plan.dtype]
        self._context: StepContext | None = None
        pieces = self._usable(kept, consume) if kept is not None else None
        self.weight_bytes = 0
        load = self._load(part, fetch, progress, pieces)
        self.fetched_bytes = load.fetched_bytes
        self._pieces = load.pieces

    def _load(
        self, part: ShardPlan, fetch: Fetch, progress: Progress | None, pieces: LoadedWeights | None
    ) -> Loader:
        """Make all that is run, and count its bytes; returns what has fetched it."""
        arch, dtype = self._arch, self._dtype
        load = Loader(arch, part, fetch, dtype, self._device, progress, pieces)
        self._encoder = self._load_encoder(load, part)
        self._embedding = self._load_embedding(load)
        self._stack: Stack | None = Stack(
            arch, self._plan, part, self.layers, load, dtype, self._device
        )
        last = self.layers.stop == arch.total_layers
        self._head = load_head(arch, load, dtype) if last and arch.has_head else None
        self._norm = (
            load_norm(arch, load, "final_norm", None, dtype) if last and not self._head else None
        )
        norm = self._head.norm if self._head else self._norm
        self._pooler = load_pooler(arch, load, norm, dtype) if norm else None
        parts = (self._encoder, self._embedding, self._stack, self._norm, self._head, self._pooler)
        self.weight_bytes = sum(part.nbytes for part in parts if part is not None)
        return load

    def _load_encoder(self, load: Loader, part: ShardPlan) -> Encoder | None:
        arch, own = self._arch.encoder, part.encoder
        if arch is None or own is None:
            return None
        return Encoder(arch, self._plan, own, self.layers, load, self._dtype, self._device)

    def _load_embedding(self, load: Loader) -> Embedding | None:
        arch = self._arch
        if arch.encoder_layers not in self.layers:
            return None
        other = arch.encoder.weight("embed") if arch.encoder and 0 in self.layers else None
        return load_embedding(arch, load, self._vocab, shared=other == arch.weight("embed"))

    def _usable(self, kept: ShardModel, consume: bool) -> LoadedWeights | None:
        """The pieces of an earlier slice, if it was of the same model in the same dtype."""
        mine, theirs = self._plan, kept._plan
        if (mine.model, mine.dtype) != (theirs.model, theirs.dtype):
            return None
        pieces = LoadedWeights(dict(kept._pieces.made))
        if consume:
            kept._take_apart()
            layers = range(self.layers.start, self.layers.stop)
            for key in list(pieces.made):
                if key[-1] is not None and key[-1] not in layers:
                    pieces.forget(key)
        return pieces

    def _take_apart(self) -> None:
        self._encoder = self._embedding = self._stack = None
        self._head = self._pooler = self._context = None
        self._pieces = LoadedWeights()

    def first_sum(self, layer: int) -> int:
        """The number of the first sum of a span that starts at `layer`, counted over a step."""
        return self._arch.first_sum(layer)

    @torch.inference_mode()
    def run(
        self, step: Step, span: Range, hidden: torch.Tensor | None, all_reduce: AllReduce
    ) -> Result:
        """Run the layers of `span`, all of them this stage's.

        `hidden` is (tokens, hidden) float32, None before the step's first layer. Returns this
        shard's part of the hidden states after the span, float32: the sum over the shards is their
        value. After the last layer that is None; the result is then the candidates of each row with
        a logits request or a mask and, from the first shard, the pooled vectors.

        Raises:
            StepFailed: a row that does not fit the plan, or a span that is not this stage's.
        """
        self._check(step, span, hidden)
        if self._stack is None:
            raise StepFailed("this slice has been taken apart")
        if step.start < self._arch.encoder_layers:
            return self._read(self._stack, step, span, hidden, all_reduce)
        context = self._prepare(self._stack, step)
        if span.start == max(step.start, self.layers.start):
            for row in step.rows:
                if row.source is not None:
                    self._stack.copy_slot(row.source, row.slot, row.start)
        x = self._embed(context, all_reduce) if hidden is None else hidden.to(self._device)
        layers = self._stack.of(span)
        if span.stop == self._arch.total_layers:
            for layer in layers:
                x = layer(x, context, all_reduce)
            return None, self._candidates(step, x), self._vectors(step, x)
        for layer in layers[:-1]:
            x = layer(x, context, all_reduce)
        return layers[-1].part(x, context, self._shard == 0, all_reduce), [], []

    def _read(
        self,
        stack: Stack,
        step: Step,
        span: Range,
        hidden: torch.Tensor | None,
        all_reduce: AllReduce,
    ) -> Result:
        """A step of texts: the encoder reads them, and the decoder's layers remember."""
        if self._encoder is None:
            raise StepFailed(f"{self._arch.model_type} has no encoder that could read a text")
        context, first = self._prepare(self._encoder.stack, step), self._shard == 0
        x, is_whole = self._encoder.run(step, context, span, hidden, first, all_reduce)
        for layer in stack.of(span):
            layer.store_encoder_kv(x, context)
        if span.stop == self._arch.total_layers:
            return None, [], []
        return x if first or not is_whole else torch.zeros_like(x), [], []

    def _vectors(self, step: Step, x: torch.Tensor) -> list[Vector]:
        if self._pooler is None or self._shard:
            return []
        return self._pooler(step.rows, x)

    def _prepare(self, stack: Stack, step: Step) -> StepContext:
        # A step comes once for each span: the layout is the same for all of them.
        if self._context is None or self._context.step != step:
            self._context = stack.prepare(step)
        return self._context

    def _check(self, step: Step, span: Range, hidden: torch.Tensor | None) -> None:
        if span.size == 0 or span.start < self.layers.start or span.stop > self.layers.stop:
            raise StepFailed(f"span {span} is not in this stage's layers {self.layers}")
        is_first = span.start == step.start
        shape = None if is_first else (step.num_tokens, self._arch.hidden_size)
        given = None if hidden is None else tuple(hidden.shape)
        if given != shape:
            raise StepFailed(f"span {span}: hidden states are {given}, expected {shape}")

    def _embed(self, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
        if self._embedding is None:
            raise StepFailed("this stage has no embedding")
        x = all_reduce(self._embedding.partial(context.ids))
        return self._embedding.complete(x, context.ids, context.positions)

    def _candidates(self, step: Step, x: torch.Tensor) -> list[Candidates]:
        last, logits_requests, position = [], [], -1
        for row in step.rows:
            if row.text_task is not None and not row.text_task.is_vector:
                last += [position + 1 + place for place in row.text_task.positions]
                logits_requests += [LogitsRequest(row.text_task.top)] * len(row.text_task.positions)
            position += len(row.tokens)
            if row.logits_request is not None:
                last.append(position)
                logits_requests.append(row.logits_request)
        if not logits_requests:
            return []
        if self._head is None:
            raise StepFailed("this stage has no head")
        return pick(self._head(x[last]), logits_requests, self._vocab.start)
