"""One shard of a model: its weights, its KV slots, and how it runs a span of layers.

Knows no transport: weights come by `Fetch`, sums by `AllSum`.
"""

from __future__ import annotations

from typing import Protocol

import torch

from skynet.errors import StepFailed
from skynet.layers.block import MLP, Attention, load_norm
from skynet.layers.candidates import pick
from skynet.layers.context import StepContext, make_context
from skynet.layers.ends import Embedding, Head
from skynet.layers.kept import Pieces
from skynet.layers.rope import Rotary
from skynet.layers.weights import Fetch, Loader, Progress
from skynet.models.architecture import Architecture
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.step import Candidates, Step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class AllSum(Protocol):
    """The sum of all shards' partials, in shard order, in float32, the shape kept.

    A partial comes as it was computed: float32 or bfloat16, (tokens, hidden), contiguous.
    """

    def __call__(self, partial: torch.Tensor) -> torch.Tensor: ...


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
        self._embedding = self._load_embedding(load) if self.layers.start == 0 else None
        self._attentions: list[Attention] = []
        self._mlps: list[MLP] = []
        for layer in range(self.layers.start, self.layers.stop):
            self._attentions.append(Attention(arch, plan, part, layer, load, dtype, self._device))
            self._mlps.append(MLP(arch, layer, load, dtype))
        self._head = self._load_head(load) if self.layers.stop == arch.num_layers else None
        self._rotary = Rotary(arch.rope, arch.head_dim, self._device) if arch.rope else None
        self._token_bytes = 2 * part.kv_heads.size * arch.head_dim * dtype.itemsize
        self._context: StepContext | None = None
        parts = (self._embedding, *self._attentions, *self._mlps, self._head)
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
        self._embedding = self._head = self._context = None
        self._attentions, self._mlps, self._pieces = [], [], Pieces()

    def _load_embedding(self, load: Loader) -> Embedding:
        positions = load.matrix("positions") if self._arch.learned_positions else None
        whole = self._vocab.size == self._arch.vocab_size
        return Embedding(load.matrix("embed"), positions, self._vocab, whole)

    def _load_head(self, load: Loader) -> Head:
        norm = load_norm(self._arch, load, "final_norm", None, self._dtype)
        return Head(norm, load.linear("embed" if self._arch.tied else "head", bias=False))

    @torch.inference_mode()
    def run(
        self, step: Step, span: Range, hidden: torch.Tensor | None, all_sum: AllSum
    ) -> tuple[torch.Tensor | None, list[Candidates]]:
        """Run the layers of `span`, all of them this stage's.

        `hidden` is (tokens, hidden) float32, None before layer 0. Returns this shard's part of the
        hidden states after the span, float32, of which a plain sum over the shards is the value;
        after the last layer None, and the candidates of each row with a `want`.

        Raises:
            StepFailed: a row that does not fit the plan, or a span that is not this stage's.
        """
        self._check(step, span, hidden)
        context = self._prepare(step)
        if span.start == self.layers.start:
            self._copy_slots(step)
        x = self._embed(context, all_sum) if hidden is None else hidden.to(self._device)
        for layer in range(span.start, span.stop):
            attention = self._attentions[layer - self.layers.start]
            mlp = self._mlps[layer - self.layers.start]
            x = _add(x, all_sum(attention(x, context)), attention.bias)
            partial = mlp(x)
            if layer == span.stop - 1 and span.stop < self._arch.num_layers:
                return self._part(x, partial, mlp.bias), []
            x = _add(x, all_sum(partial), mlp.bias)
        return None, self._candidates(step, x)

    def _copy_slots(self, step: Step) -> None:
        """All layers at once, at the step's first span: later a slot may be another's."""
        for row in step.rows:
            if row.source is not None:
                for attention in self._attentions:
                    attention.copy_slot(row.source, row.slot, row.start)

    def _prepare(self, step: Step) -> StepContext:
        # A step comes once for each span: the layout is the same for all of them.
        if self._context is None or self._context.step != step:
            self._context = make_context(
                step,
                self._plan,
                self._arch.vocab_size,
                self._rotary,
                {attention.window for attention in self._attentions},
                self._token_bytes,
                self._dtype,
                self._device,
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
        return self._embedding.add_positions(x, context.positions)

    def _part(
        self, x: torch.Tensor, partial: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Residual and bias are in shard 0's part only, so that they are in the sum once."""
        if self._shard == 0:
            return _add(x, partial, bias)
        return partial.float()

    def _candidates(self, step: Step, x: torch.Tensor) -> list[Candidates]:
        if self._head is None:
            raise StepFailed("this stage has no head")
        last, wants, position = [], [], -1
        for row in step.rows:
            position += len(row.tokens)
            if row.want is not None:
                last.append(position)
                wants.append(row.want)
        if not wants:
            return []
        return pick(self._head(x[last]), wants, self._vocab.start)


def _add(x: torch.Tensor, total: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    x = x + total
    return x if bias is None else x.add_(bias)
