"""One shard of a model: its weights, its KV slots, and how it runs a span of layers.

Knows no transport: weights come by `Fetch`, sums by `AllSum`.
"""

from __future__ import annotations

import torch

from skynet.errors import StepFailed
from skynet.layers.alibi import PositionBias
from skynet.layers.candidates import pick
from skynet.layers.context import StepContext, make_context
from skynet.layers.ends import load_embedding, load_head
from skynet.layers.kept import Pieces
from skynet.layers.layer import Layer, ParallelLayer, SequentialLayer
from skynet.layers.norm import AllSum, load_norm
from skynet.layers.reading import Vector, load_reader
from skynet.layers.rope import Rotary
from skynet.layers.weights import Fetch, Loader, Progress
from skynet.models.architecture import Architecture
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.step import Candidates, Step, Want

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
        dtype = self._dtype = DTYPES[plan.dtype]
        pieces = self._usable(kept, consume) if kept is not None else None
        load = Loader(arch, part, fetch, dtype, self._device, progress, pieces)
        first, last = self.layers.start == 0, self.layers.stop == arch.num_layers
        self._embedding = load_embedding(arch, load, self._vocab) if first else None
        kind = ParallelLayer if arch.parallel else SequentialLayer
        self._layers: list[Layer] = [
            kind(arch, plan, part, layer, load, dtype, self._device)
            for layer in range(self.layers.start, self.layers.stop)
        ]
        self._head = load_head(arch, load, dtype) if last and arch.has_head else None
        self._norm = (
            load_norm(arch, load, "final_norm", None, dtype) if last and not self._head else None
        )
        norm = self._head.norm if self._head else self._norm
        self._reader = load_reader(arch, load, norm, dtype) if norm else None
        self._rotaries = [Rotary(rope, self._device) for rope in arch.rope_kinds]
        self._bias = PositionBias(arch, arch.alibi, part) if arch.alibi else None
        self._token_bytes = 2 * part.kv_heads.size * arch.head_dim * dtype.itemsize
        self._context: StepContext | None = None
        parts = (self._embedding, *self._layers, self._norm, self._head, self._reader)
        self.weight_bytes: int = sum(part.nbytes for part in parts if part is not None)
        self.fetched_bytes = load.fetched_bytes
        self._pieces = load.pieces

    def _usable(self, kept: ShardModel, consume: bool) -> Pieces | None:
        """The pieces of an earlier slice, if it was of the same model in the same dtype."""
        mine, theirs = self._plan, kept._plan
        if (mine.model, mine.dtype) != (theirs.model, theirs.dtype):
            return None
        pieces = Pieces(dict(kept._pieces.made))
        if consume:
            kept._take_apart()
            layers = range(self.layers.start, self.layers.stop)
            for key in list(pieces.made):
                if key[-1] is not None and key[-1] not in layers:
                    pieces.forget(key)
        return pieces

    def _take_apart(self) -> None:
        self._embedding = self._head = self._reader = self._context = None
        self._layers, self._pieces = [], Pieces()

    def first_sum(self, layer: int) -> int:
        """The number of the first sum of a span that starts at `layer`, counted over a step."""
        return self._arch.first_sum(layer)

    @torch.inference_mode()
    def run(
        self, step: Step, span: Range, hidden: torch.Tensor | None, all_sum: AllSum
    ) -> tuple[torch.Tensor | None, list[Candidates], list[Vector]]:
        """Run the layers of `span`, all of them this stage's.

        `hidden` is (tokens, hidden) float32, None before layer 0. Returns this shard's part of the
        hidden states after the span, float32, of which a plain sum over the shards is the value;
        after the last layer None, the candidates of each row with a `want` or a mask, and of the
        first shard the vectors that are read of rows.

        Raises:
            StepFailed: a row that does not fit the plan, or a span that is not this stage's.
        """
        self._check(step, span, hidden)
        context = self._prepare(step)
        if span.start == self.layers.start:
            self._copy_slots(step)
        x = self._embed(context, all_sum) if hidden is None else hidden.to(self._device)
        layers = self._layers[span.start - self.layers.start : span.stop - self.layers.start]
        if span.stop == self._arch.num_layers:
            for layer in layers:
                x = layer(x, context, all_sum)
            return None, self._candidates(step, x), self._vectors(step, x)
        for layer in layers[:-1]:
            x = layer(x, context, all_sum)
        return layers[-1].part(x, context, self._shard == 0, all_sum), [], []

    def _vectors(self, step: Step, x: torch.Tensor) -> list[Vector]:
        if self._reader is None or self._shard:
            return []
        return self._reader(step.rows, x)

    def _copy_slots(self, step: Step) -> None:
        """All layers at once, at the step's first span: later a slot may be another's."""
        for row in step.rows:
            if row.source is not None:
                for layer in self._layers:
                    layer.copy_slot(row.source, row.slot, row.start)

    def _prepare(self, step: Step) -> StepContext:
        # A step comes once for each span: the layout is the same for all of them.
        if self._context is None or self._context.step != step:
            self._context = make_context(
                step,
                self._plan,
                self._arch.vocab_size,
                self._rotaries,
                {layer.window for layer in self._layers},
                self._token_bytes,
                self._dtype,
                self._device,
                self._bias,
                self._arch.bidirectional,
            )
        return self._context

    def _check(self, step: Step, span: Range, hidden: torch.Tensor | None) -> None:
        if span.size == 0 or span.start < self.layers.start or span.stop > self.layers.stop:
            raise StepFailed(f"span {span} is not in this stage's layers {self.layers}")
        shape = None if span.start == 0 else (step.num_tokens, self._arch.hidden_size)
        given = None if hidden is None else tuple(hidden.shape)
        if given != shape:
            raise StepFailed(f"span {span}: hidden states are {given}, expected {shape}")

    def _embed(self, context: StepContext, all_sum: AllSum) -> torch.Tensor:
        if self._embedding is None:
            raise StepFailed("this stage has no embedding")
        x = all_sum(self._embedding.partial(context.ids))
        return self._embedding.complete(x, context.ids, context.positions)

    def _candidates(self, step: Step, x: torch.Tensor) -> list[Candidates]:
        last, wants, position = [], [], -1
        for row in step.rows:
            if row.read is not None and not row.read.is_vector:
                last += [position + 1 + place for place in row.read.positions]
                wants += [Want(row.read.top)] * len(row.read.positions)
            position += len(row.tokens)
            if row.want is not None:
                last.append(position)
                wants.append(row.want)
        if not wants:
            return []
        if self._head is None:
            raise StepFailed("this stage has no head")
        return pick(self._head(x[last]), wants, self._vocab.start)
