"""Our side: the shards of one layer, or of an end, loaded from the checkpoint and run in turns.

Each shard is what a worker would hold. Sums are made in shard order, in float32, as the exchange
makes them. Knows nothing of Transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from skynet.layers.alibi import PositionBias
from skynet.layers.context import StepContext, make_context
from skynet.layers.ends import load_embedding, load_head
from skynet.layers.layer import Layer, ParallelLayer, SequentialLayer
from skynet.layers.norm import AllSum, load_norm
from skynet.layers.reading import load_reader
from skynet.layers.rope import Rotary
from skynet.layers.shard_model import DTYPES
from skynet.layers.weights import Fetch, Loader
from skynet.models.architecture import Architecture
from skynet.models.checkpoint import Checkpoint
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.stager import tensor_plans
from skynet.step import Read, Row, Step
from skynet.task_names import CLASSIFY

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


class Waits(Exception):
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


class Ours:
    """A plan's shards, a layer at a time, for one prompt in one step."""

    def __init__(self, arch: Architecture, plan: Plan, fetch: Fetch, ids: list[int]) -> None:
        self._arch, self._plan, self._fetch = arch, plan, fetch
        self._dtype = DTYPES[plan.dtype]
        self._step = Step(plan.epoch, 1, (Row(0, 0, tuple(ids), len(ids)),), 1)
        self._ids = torch.tensor(ids)
        self._rotaries = [Rotary(rope, CPU) for rope in arch.rope_kinds]

    def embed(self) -> LayerRun:
        """The embedding's partials, (tokens, embedding), and the hidden states before layer 0."""
        shards = [
            load_embedding(self._arch, self._loader(part), part.vocab) for part in self.parts(0)
        ]
        partials = [shard.partial(self._ids) for shard in shards]
        total, positions = add_up(partials), torch.arange(len(self._ids))
        outputs = [shard.complete(total, self._ids, positions) for shard in shards]
        return LayerRun([partials], outputs)

    def load_layer(self, layer: int) -> LayerShards:
        """All shards of a layer; free them before the next one."""
        stage, arch = self._plan.stage_of(layer), self._arch
        kind = ParallelLayer if arch.parallel else SequentialLayer
        layers: list[Layer] = []
        contexts = []
        for part in self.parts(stage):
            load = self._loader(part)
            loaded = kind(arch, self._plan, part, layer, load, self._dtype, CPU)
            layers.append(loaded)
            contexts.append(self._context(part, loaded.window))
        return LayerShards(layers, contexts)

    def logits(self, hidden: list[torch.Tensor]) -> list[list[Piece]]:
        """Of each `hidden` (rows, hidden), the logits of each shard's part of the vocabulary."""
        logits: list[list[Piece]] = [[] for _ in hidden]
        for shard, part in enumerate(self._last_parts):
            head = load_head(self._arch, self._loader(part), self._dtype)
            for found, x in zip(logits, hidden, strict=True):
                values = head(x) if part.vocab.size else torch.empty(len(x), 0)
                found.append(Piece(shard, part.vocab.start, values))
        return logits

    def states(self, hidden: list[torch.Tensor]) -> list[list[Piece]]:
        """Of each `hidden` (rows, hidden), the same after the last norm, if there is one."""
        load = self._loader(self._last_parts[0])
        norm = load_norm(self._arch, load, "final_norm", None, self._dtype)
        return [[Piece(None, 0, norm(x).float())] for x in hidden]

    def classes(self, hidden: list[torch.Tensor]) -> list[list[Piece]]:
        """Of each `hidden` (tokens, hidden), a whole text, the logits of its labels, one row."""
        load = self._loader(self._last_parts[0])
        norm = load_norm(self._arch, load, "final_norm", None, self._dtype)
        reader = load_reader(self._arch, load, norm, self._dtype)
        rows = [replace(row, read=Read(CLASSIFY)) for row in self._step.rows]
        found = [torch.from_numpy(vector) for x in hidden for vector in reader(rows, x)]
        return [[Piece(None, 0, logits[None])] for logits in found]

    def parts(self, stage: int) -> tuple[ShardPlan, ...]:
        return self._plan.stages[stage].shards

    @property
    def _last_parts(self) -> tuple[ShardPlan, ...]:
        return self.parts(len(self._plan.stages) - 1)

    def _loader(self, part: ShardPlan) -> Loader:
        return Loader(self._arch, part, self._fetch, self._dtype, CPU)

    def _context(self, part: ShardPlan, window: int | None) -> StepContext:
        arch = self._arch
        return make_context(
            self._step,
            self._plan,
            arch.vocab_size,
            self._rotaries,
            {window},
            2 * part.kv_heads.size * arch.head_dim * self._dtype.itemsize,
            self._dtype,
            CPU,
            PositionBias(arch, arch.alibi, part) if arch.alibi else None,
            arch.bidirectional,
        )


class LayerShards:
    """The shards of one layer in one process."""

    def __init__(self, layers: list[Layer], contexts: list[StepContext]) -> None:
        self._layers, self._contexts = layers, contexts

    def run(self, x: torch.Tensor) -> LayerRun:
        """`x` (tokens, hidden) float32 through the layer.

        No shard can go on after a sum before all have come to it, so each sum takes a round, in
        which every shard starts again with the sums of the rounds before.
        """
        sums: list[torch.Tensor] = []
        partials: list[list[torch.Tensor]] = []
        while True:
            outputs, waiting = [], []
            for layer, context in zip(self._layers, self._contexts, strict=True):
                try:
                    outputs.append(layer(x, context, known_sums(sums)))
                except Waits as wait:
                    waiting.append(wait.partial)
            if not waiting:
                return LayerRun(partials, outputs)
            partials.append(waiting)
            sums.append(add_up(waiting))


def known_sums(sums: list[torch.Tensor]) -> AllSum:
    """Gives the sums that are known, in order; `Waits` at the first that is not."""
    left = iter(sums)

    def all_sum(partial: torch.Tensor) -> torch.Tensor:
        total = next(left, None)
        if total is None:
            raise Waits(partial)
        return total.clone()  # what gets a sum may change it

    return all_sum


def add_up(partials: list[torch.Tensor]) -> torch.Tensor:
    """The sum in shard order, float32."""
    total = torch.zeros(partials[0].shape, dtype=torch.float32)
    for partial in partials:
        total += partial
    return total
