"""Our side: the shards of one layer, or of an end, loaded from the checkpoint and run in turns.

Each shard is what a worker would hold. Sums are made in shard order, in float32, as the exchange
makes them. Knows nothing of Transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from skynet.architecture.architecture import Architecture
from skynet.check.stacks import CheckedStack
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.tensor_plans import tensor_plans
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.embedding import load_embedding
from skynet.layers.encoder import Encoder
from skynet.layers.head import load_head
from skynet.layers.layer import Layer
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.pooler import load_pooler
from skynet.layers.regions import Fetch
from skynet.layers.shard_model import DTYPES
from skynet.layers.stack import Stack
from skynet.layers.weights import Loader
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.request.task_names import CLASSIFY
from skynet.wire.step import Step, TextTask

CPU = torch.device("cpu")


class CheckpointFetch:
    """Regions of a checkpoint's tensors, by their canonical names, without Redis between.

    Raises:
        CheckpointError, UnsupportedModel: tensors are missing or not of the config's shapes.
    """

    def __init__(self, checkpoint: Checkpoint, arch: Architecture) -> None:
        self._checkpoint, self.plans = checkpoint, tensor_plans(checkpoint, arch)

    def __call__(self, name: str, region: Range) -> torch.Tensor:
        plan = self.plans[name]
        array = self._checkpoint.read(plan.source_name, plan.axis, region.start, region.stop)
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if plan.dtype == "bfloat16" else tensor


class _Waits(Exception):
    """A shard needs a sum that its peers have not computed their part of yet."""

    def __init__(self, partial: torch.Tensor) -> None:
        self.partial = partial


@dataclass(frozen=True)
class LayerRun:
    """What the shards of a layer made: `partials[sum][shard]`, and the `outputs` of each shard.

    Every shard has the whole output, (tokens, hidden) float32, and they are all the same.
    """

    partials: list[list[torch.Tensor]]
    outputs: list[torch.Tensor]


@dataclass(frozen=True)
class Piece:
    """What the last stage makes of hidden states: its columns from `start` on.

    shard: whose they are; None of what one shard computes for all.
    """

    shard: int | None
    start: int
    values: torch.Tensor  # (rows, width) float32


class SkynetShards:
    """A plan's shards, a layer at a time, each stack reading its row in one step."""

    def __init__(
        self, arch: Architecture, plan: Plan, fetch: Fetch, stacks: Sequence[CheckedStack]
    ) -> None:
        self._arch, self._plan, self._fetch, self._stacks = arch, plan, fetch, stacks
        self._dtype = DTYPES[plan.dtype]

    def embed(self, stack: CheckedStack) -> LayerRun:
        """A stack's embedding: partials (tokens, embedding), and what its first layer reads."""
        parts = self.parts(self._plan.stage_of(stack.layers.start))
        shards = [load_embedding(self._loader(part, stack)) for part in parts]
        ids = torch.tensor(stack.ids)
        partials = [shard.partial(ids) for shard in shards]
        total, positions = add_up(partials), torch.arange(len(ids))
        return LayerRun([partials], [shard.complete(total, ids, positions) for shard in shards])

    def load_layer(self, stack: CheckedStack, layer: int) -> LayerShards:
        """All shards of a layer, numbered as in the model; free them before the next one."""
        parts = self.parts(self._plan.stage_of(layer))
        return LayerShards([self._layer_shard(part, stack, layer) for part in parts])

    def remembered(self, x: torch.Tensor) -> LayerRun:
        """What each shard of the decoder's first stage makes of `x`, the encoder's last layer's."""
        stack, layer = self._stacks[0], self._arch.encoder_layers
        step, span, outputs = self._step(stack), Range(layer, layer + 1), []
        for part in self.parts(self._plan.stage_of(layer)):
            encoder = Encoder(self._loader(part, stack), KVLayout.of(self._plan), span)
            context = encoder.stack.prepare(step)
            outputs.append(encoder.run(context, span, x, True, _known([]))[0])
        return LayerRun([], outputs)

    def logits(self, hidden: list[torch.Tensor]) -> list[list[Piece]]:
        """Of each `hidden` (rows, hidden), the logits of each shard's part of the vocabulary."""
        logits: list[list[Piece]] = [[] for _ in hidden]
        for shard, part in enumerate(self._last_parts):
            head = load_head(self._loader(part, self._last))
            for found, x in zip(logits, hidden, strict=True):
                values = head(x) if part.vocab.size else torch.empty(len(x), 0)
                found.append(Piece(shard, part.vocab.start, values))
        return logits

    def states(self, hidden: list[torch.Tensor]) -> list[list[Piece]]:
        """Of each `hidden` (rows, hidden), the same after the last norm, if there is one."""
        load = self._loader(self._last_parts[0], self._last)
        norm = load_norm(load, "final_norm")
        return [[Piece(None, 0, norm(x).float())] for x in hidden]

    def classes(self, hidden: list[torch.Tensor]) -> list[list[Piece]]:
        """Of each `hidden` (tokens, hidden), a whole text, the logits of its labels, one row."""
        load = self._loader(self._last_parts[0], self._last)
        norm = load_norm(load, "final_norm")
        reader = load_pooler(load, norm)
        rows = [replace(self._last.row, text_task=TextTask(CLASSIFY))]
        found = [torch.from_numpy(vector) for x in hidden for vector in reader(rows, x)]
        return [[Piece(None, 0, logits[None])] for logits in found]

    def parts(self, stage: int) -> tuple[ShardPlan, ...]:
        return self._plan.stages[stage].shards

    @property
    def _last(self) -> CheckedStack:
        return self._stacks[-1]

    @property
    def _last_parts(self) -> tuple[ShardPlan, ...]:
        return self.parts(len(self._plan.stages) - 1)

    def _loader(self, part: ShardPlan, stack: CheckedStack) -> Loader:
        return Loader(stack.arch, stack.part(part), self._fetch, self._dtype, CPU)

    def _step(self, stack: CheckedStack) -> Step:
        return Step(self._plan.epoch, 1, (stack.row,), 1, stack.layers.start)

    def _layer_shard(self, part: ShardPlan, stack: CheckedStack, layer: int) -> LayerShard:
        own = self._load(part, stack, Range(layer, layer + 1))
        (loaded,) = own.of(own.run)
        texts = None
        if stack.encoder is not None:
            encoder = self._load(part, stack.encoder, own.run)
            texts = encoder.prepare(self._step(stack.encoder))
        return LayerShard(loaded, own.prepare(self._step(stack)), texts)

    def _load(self, part: ShardPlan, stack: CheckedStack, layers: Range) -> Stack:
        """One shard's layers of a stack; none where they are all another's."""
        return Stack(self._loader(part, stack), KVLayout.of(self._plan), layers)


@dataclass(frozen=True)
class LayerShard:
    """One shard of a layer, and how the step lies; `texts` is how that of the encoder lies."""

    layer: Layer
    context: StepContext
    texts: StepContext | None


class LayerShards:
    """The shards of one layer in one process."""

    def __init__(self, shards: list[LayerShard]) -> None:
        self._shards = shards

    def run(self, x: torch.Tensor, encoder_output: torch.Tensor | None = None) -> LayerRun:
        """`x` (tokens, hidden) float32 through the layer; `memory` is what an encoder has read."""
        for shard in self._shards:
            if shard.texts is not None and encoder_output is not None:
                shard.layer.store_encoder_kv(encoder_output, shard.texts)
        return in_rounds([functools.partial(each.layer, x, each.context) for each in self._shards])


def in_rounds(shards: Sequence[Callable[[AllReduce], torch.Tensor]]) -> LayerRun:
    """Run all shards in turns.

    No shard can go on after a sum before all have come to it, so each sum takes a round, in which
    every shard starts again with the sums of the rounds before.
    """
    sums: list[torch.Tensor] = []
    partials: list[list[torch.Tensor]] = []
    while True:
        outputs, waiting = [], []
        for run in shards:
            try:
                outputs.append(run(_known(sums)))
            except _Waits as wait:
                waiting.append(wait.partial)
        if not waiting:
            return LayerRun(partials, outputs)
        partials.append(waiting)
        sums.append(add_up(waiting))


def _known(sums: list[torch.Tensor]) -> AllReduce:
    """Gives the sums that are known, in order; `_Waits` at the first that is not."""
    left = iter(sums)

    def all_reduce(partial: torch.Tensor) -> torch.Tensor:
        total = next(left, None)
        if total is None:
            raise _Waits(partial)
        return total.clone()  # what gets a sum may change it

    return all_reduce


def add_up(partials: list[torch.Tensor]) -> torch.Tensor:
    """The sum in shard order, float32."""
    total = torch.zeros(partials[0].shape, dtype=torch.float32)
    for partial in partials:
        total += partial
    return total
