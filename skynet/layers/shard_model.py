"""One shard of a model: its weights, its KV slots, and how it runs a span of layers.

Knows no transport: weights come by `Fetch`, sums by `AllReduce`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from skynet.architecture.architecture import Architecture
from skynet.errors import NotFinite, StepFailed
from skynet.layers.cache import KVLayout
from skynet.layers.candidates import pick
from skynet.layers.carrier import Carrier
from skynet.layers.context import StepContext
from skynet.layers.dtypes import Dtypes
from skynet.layers.embedding import Embedding, load_embedding
from skynet.layers.encoder import Encoder
from skynet.layers.finite import FiniteCheck, no_part
from skynet.layers.head import load_head
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.pooler import Vector, load_pooler
from skynet.layers.regions import Fetch
from skynet.layers.reuse import LoadedWeights, SliceWeights
from skynet.layers.scores import with_scores
from skynet.layers.stack import Stack
from skynet.layers.token_masks import TokenMasks
from skynet.layers.weights import Loader
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.wire.keys import Address
from skynet.wire.step import Candidates, LogitsRequest, Row, Step

Result = tuple[torch.Tensor | None, list[Candidates], list[Vector]]


@dataclass(frozen=True)
class PreviousSlice:
    """A model of an earlier plan, whose weights a new one reuses.

    consume: free it while the new one is loaded, so that memory never holds two slices; it cannot
        run afterwards.
    """

    model: ShardModel
    consume: bool = False


class ShardModel:
    """Computes one shard of one stage of a plan. Not thread-safe: a step at a time."""

    @torch.inference_mode()
    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        address: tuple[int, int],
        fetch: Fetch,
        device: str = "cpu",
        previous: PreviousSlice | None = None,
    ) -> None:
        """Load the slice of `address`, (stage, shard).

        previous: weights that it shares with this slice are not fetched again.
        """
        stage, self._shard = address
        self._address = str(Address(*address))
        self._arch, self._plan = arch, plan
        self.layers = plan.stages[stage].layers
        part = plan.stages[stage].shards[self._shard]
        self._vocab, self._device = part.vocab, torch.device(device)
        self._carrier = Carrier(arch, [each.layers for each in plan.stages], self.layers)
        borders = range(self.layers.start, self.layers.stop + 1)
        self._first_sums = {layer: arch.first_sum(layer) for layer in borders}
        self._masks = TokenMasks(part.vocab.start, part.vocab.size)
        self._dtypes = Dtypes.of(plan)
        self._context: StepContext | None = None
        weights = SliceWeights(self._reusable(previous) if previous else None)
        self.weight_bytes = 0
        self._load(part, fetch, weights)
        self.fetched_bytes = weights.fetched_bytes
        self._weights = weights.loaded

    def _load(self, part: ShardPlan, fetch: Fetch, weights: SliceWeights) -> None:
        """Load the modules of the slice, and count their bytes."""
        arch, kv = self._arch, KVLayout.of(self._plan)
        load = Loader(arch, part, fetch, self._dtypes, self._device, weights)
        encoder = load.for_encoder()
        self._encoder = Encoder(encoder, kv, self.layers) if encoder else None
        self._embedding: Embedding | None = None
        if arch.encoder_layers in self.layers:
            other = arch.encoder.weight("embed") if arch.encoder and 0 in self.layers else None
            self._embedding = load_embedding(load, shared=other == arch.weight("embed"))
        self._stack: Stack | None = Stack(load, kv, self.layers)
        last = self.layers.stop == arch.total_layers
        self._head = load_head(load) if last and arch.has_head else None
        self._norm = load_norm(load, "final_norm") if last and not self._head else None
        norm = self._head.norm if self._head else self._norm
        self._pooler = load_pooler(load, norm) if norm else None
        self._suppressed = self._head.suppressed if self._head else None
        parts = (self._encoder, self._embedding, self._stack, self._norm, self._head, self._pooler)
        self.weight_bytes = sum(part.nbytes for part in parts if part is not None)

    def _reusable(self, previous: PreviousSlice) -> LoadedWeights | None:
        """The weights of an earlier slice, if it was of the same model in the same dtypes."""
        plan, model = self._plan, previous.model
        if (plan.model, self._dtypes) != (model._plan.model, model._dtypes):
            return None
        weights = LoadedWeights(dict(model._weights.entries))
        if previous.consume:
            model._free()
            weights.forget_layers_outside(self.layers)
        return weights

    def _free(self) -> None:
        """Free weights and KV slots."""
        self._encoder = self._embedding = self._stack = None
        self._head = self._pooler = self._context = None
        self._weights = LoadedWeights()

    def first_sum(self, layer: int) -> int:
        """The number of the first all-reduce of a span that starts at `layer`, within a step."""
        return self._first_sums[layer]

    @torch.inference_mode()
    def run(
        self, step: Step, span: Range, hidden: torch.Tensor | None, all_reduce: AllReduce
    ) -> Result:
        """Run the layers of `span`, all of them of this stage.

        `hidden` is (tokens, hidden) float32, followed by the columns that it carries (`Carrier`);
        None before the step's first layer. Returns this shard's part of the same after the span,
        float32: the sum over the shards is the value. After the last layer it is None; the rest of
        the result is then the candidates of each row with a logits request, scores or a mask and,
        from the first shard, the pooled vectors.

        Raises:
            NotFinite: NaN or infinity in the results; no slot of the step's rows keeps any.
            StepFailed: a row that does not fit the plan, or a span outside of this stage.
        """
        self._check(step, span, hidden)
        if self._stack is None:
            raise StepFailed("this slice was freed: a new slice has its weights")
        finite = FiniteCheck(step, self._address)
        if step.layers_per_chord == 1:
            all_reduce = finite.partials(all_reduce, span.start, embeds=hidden is None)
        try:
            x = self._forward(self._stack, step, span, hidden, all_reduce)
            finite(f"the hidden states after layer {span.stop - 1}", x)
            if span.stop < self._arch.total_layers:
                return x, [], []
            if step.start < self._arch.encoder_layers:
                return None, [], []
            return None, self._candidates(step, x, finite), self._vectors(step, x, finite)
        except NotFinite:
            if self._context is not None:
                self._stack.clear(self._context, texts=step.start < self._arch.encoder_layers)
            raise

    def _forward(
        self,
        stack: Stack,
        step: Step,
        span: Range,
        hidden: torch.Tensor | None,
        all_reduce: AllReduce,
    ) -> torch.Tensor:
        """The hidden states after the span: all of them after the last layer, else the part."""
        if step.start < self._arch.encoder_layers:
            return self._encode(stack, step, span, hidden, all_reduce)
        context = self._prepare(stack, step)
        if span.start == max(step.start, self.layers.start):
            stack.copy_sources(step)
        x = self._embed(context, all_reduce) if hidden is None else hidden.to(self._device)
        x, context = self._carrier.take(x, span.start, context, stack.shared)
        if span.stop == self._arch.total_layers:
            return stack.forward(x, span, context, all_reduce)
        first = self._shard == 0
        x = stack.part(x, span, context, first, all_reduce)
        return self._carrier.give(x, span.stop, context, stack.shared, first)

    def _encode(
        self,
        stack: Stack,
        step: Step,
        span: Range,
        hidden: torch.Tensor | None,
        all_reduce: AllReduce,
    ) -> torch.Tensor:
        """A step of whole texts: the encoder runs, and the decoder's layers store encoder KV."""
        if self._encoder is None:
            raise StepFailed(f"{self._arch.model_type} has no encoder")
        context, first = self._prepare(self._encoder.stack, step), self._shard == 0
        x, is_whole = self._encoder.run(context, span, hidden, first, all_reduce)
        for layer in stack.of(span):
            layer.store_encoder_kv(x, context)
        return x if first or not is_whole else no_part(x)

    def _prepare(self, stack: Stack, step: Step) -> StepContext:
        # A step comes once for each span, and its layout is the same for all of them.
        if self._context is None or self._context.step != step:
            self._context = stack.prepare(step)
        return self._context

    def _check(self, step: Step, span: Range, hidden: torch.Tensor | None) -> None:
        if span.size == 0 or span.start < self.layers.start or span.stop > self.layers.stop:
            raise StepFailed(f"span {span} is not in this stage's layers {self.layers}")
        is_first = span.start == step.start
        expected = None if is_first else (step.num_tokens, self._carrier.width(span.start))
        shape = None if hidden is None else tuple(hidden.shape)
        if shape != expected:
            raise StepFailed(f"span {span}: hidden states are {shape}, expected {expected}")

    def _embed(self, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
        if self._embedding is None:
            raise StepFailed("this stage has no embedding")
        return self._embedding(context.ids, context.positions, all_reduce, context.types)

    def _candidates(self, step: Step, x: torch.Tensor, finite: FiniteCheck) -> list[Candidates]:
        tokens, logits_requests = _logits_requests(step.rows)
        picked: list[Candidates] = []
        if logits_requests:
            logits = self._logits(x, tokens, finite)
            picked = pick(logits, logits_requests, self._vocab.start, self._masks)
        if not any(row.scores for row in step.rows):
            return picked
        return with_scores(step.rows, picked, self._vocab, lambda at: self._logits(x, at, finite))

    def _logits(self, x: torch.Tensor, tokens: Sequence[int], finite: FiniteCheck) -> torch.Tensor:
        """Logits (tokens, vocabulary of this shard) of these tokens of a step; all finite."""
        if self._head is None:
            raise StepFailed("this stage has no head")
        logits = self._head(x[list(tokens)])
        # Tokens that the model itself suppresses have a bias of -inf.
        hidden = self._suppressed
        finite("the logits", logits if hidden is None else logits.masked_fill(hidden, 0), tokens)
        return logits

    def _vectors(self, step: Step, x: torch.Tensor, finite: FiniteCheck) -> list[Vector]:
        if self._pooler is None or self._shard:
            return []
        vectors, start = self._pooler(step.rows, x), 0
        results = iter(vectors)
        for row in step.rows:
            if row.text_task is not None and row.text_task.is_vector:
                what = f"the result of task {row.text_task.task}"
                finite(what, torch.from_numpy(next(results))[None], [start])
            start += len(row.tokens)
        return vectors


def _logits_requests(rows: Sequence[Row]) -> tuple[list[int], list[LogitsRequest]]:
    """The tokens of a step whose logits are needed, and the request for each."""
    tokens, logits_requests, last = [], [], -1
    for row in rows:
        task = row.text_task
        if task is not None and not task.is_vector:
            tokens += [last + 1 + position for position in task.positions]
            logits_requests += [task.logits_request] * len(task.positions)
        last += len(row.tokens)
        if row.logits_request is not None:
            tokens.append(last)
            logits_requests.append(row.logits_request)
    return tokens, logits_requests
