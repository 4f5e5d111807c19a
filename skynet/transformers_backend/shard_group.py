"""All shards of a plan on the Transformers backend in one process, a layer at a time.

Runs one prompt as workers would: in two steps, the second of them beside another sequence, whose
rows must be the same as alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.errors import SkynetError, UnsupportedModel
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext, StepLayout, make_context
from skynet.layers.dtypes import Dtypes
from skynet.layers.lockstep import run_in_lockstep
from skynet.layers.norm import AllReduce
from skynet.layers.regions import Fetch
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.reference.difference import LIMITS, difference
from skynet.transformers_backend.body import Body
from skynet.transformers_backend.loader import TransformersLoader
from skynet.wire.step import Row, Step

CPU = torch.device("cpu")
SLOTS = 2
OTHER_TOKENS = 2  # length of the other sequence, a prefix of the prompt

Run = Callable[[Body, StepContext, AllReduce], torch.Tensor]


class ShardGroup:
    """A plan's shards with one layer's weights in memory."""

    def __init__(
        self, arch: TransformersArchitecture, plan: Plan, fetch: Fetch, prompt: Sequence[int]
    ) -> None:
        self._arch, self._plan, self._fetch = arch, replace(plan, num_slots=SLOTS), fetch
        self._prompt, self._dtypes = tuple(prompt), Dtypes.of(plan)
        self._bodies: dict[ShardPlan, Body] = {}  # whose layer is replaced by the next one
        self._layer, self._parts = 0, plan.stages[0].shards

    def embed(self) -> list[torch.Tensor]:
        """The hidden states before layer 0, (tokens, hidden) float32 of each shard."""
        parts = self._plan.stages[0].shards
        bodies = [self._body(part) for part in parts]
        for part, body in zip(parts, bodies, strict=True):
            body.load_tokens(self._loader(part))

        def run(body: Body, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
            return body.run(context, Range(0, 0), None, all_reduce)

        row = Row(0, 0, self._prompt, len(self._prompt))
        return self._run_shards("the embedding", bodies, parts, (row,), run)

    def load_layer(self, layer: int) -> None:
        """Load all shards of a layer in place of the previous one."""
        self._layer, self._parts = layer, self._plan.stages[self._plan.stage_of(layer)].shards
        for part in self._parts:
            if part not in self._bodies:
                self._bodies[part] = self._body(part)
            body = self._bodies[part]
            body.unload_layers()
            body.load_layer(layer, self._loader(part))

    def run_layer(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`x` (tokens, hidden) float32 through the layer; the output of each shard.

        Raises:
            UnsupportedModel: the layer fails, or sequences of a batch influence each other.
        """
        outputs: list[list[torch.Tensor]] = [[] for _ in self._parts]
        for rows in self._steps():
            count = len(rows[0].tokens)
            batch = torch.cat([x[row.start : row.stop] for row in rows])
            for steps, output in zip(outputs, self._run_rows(rows, batch), strict=True):
                steps.append(output[:count])
                if len(rows) > 1:
                    beside = output[count:]
                    self._check_batch(torch.cat(steps)[: len(beside)], beside)
        return [torch.cat(steps) for steps in outputs]

    def logits(self, hidden: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """`[hidden][shard]`: logits of (rows, hidden) for each shard's part of the vocabulary."""
        logits: list[list[torch.Tensor]] = [[] for _ in hidden]
        for part in self._plan.stages[-1].shards:
            body = self._body(part)
            body.load_head(self._loader(part))
            for by_shard, x in zip(logits, hidden, strict=True):
                by_shard.append(body.head(x))
        return logits

    def _steps(self) -> list[tuple[Row, ...]]:
        """The steps that take the prompt; the last one takes the other sequence too."""
        ids, count = self._prompt, len(self._prompt)
        other = Row(1, 0, ids[:OTHER_TOKENS], count)
        if count == 1:
            return [(Row(0, 0, ids, count), other)]
        last = Row(0, count - 1, ids[-1:], count)
        return [(Row(0, 0, ids[:-1], count),), (last, other)]

    def _run_rows(self, rows: tuple[Row, ...], x: torch.Tensor) -> list[torch.Tensor]:
        """`x` (tokens of all rows, hidden) through the loaded layer."""
        layer = self._layer

        def run(body: Body, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
            return body.run(context, Range(layer, layer + 1), x, all_reduce)

        bodies = [self._bodies[part] for part in self._parts]
        return self._run_shards(f"layer {layer}", bodies, self._parts, rows, run)

    def _check_batch(self, alone: torch.Tensor, beside: torch.Tensor) -> None:
        """Raise UnsupportedModel if a sequence depends on another one in its batch."""
        if not alone.isfinite().all():
            return  # wrong alone already, which the comparison with the uncut layer shows
        apart, limit = difference(beside, alone).relative, LIMITS[self._plan.dtype]
        if apart > limit:
            raise UnsupportedModel(
                f"model_type {self._arch.model_type!r}: layer {self._layer} computes other numbers "
                f"for a sequence beside another one than alone ({apart:.1e} of the row's largest, "
                f"limit {limit:g}): its tokens depend on others by another way than attention"
            )

    def _run_shards(
        self,
        name: str,
        bodies: Sequence[Body],
        parts: Sequence[ShardPlan],
        rows: tuple[Row, ...],
        run: Run,
    ) -> list[torch.Tensor]:
        """The output of each shard; `name` is for errors."""
        contexts = [self._context(part, rows) for part in parts]
        shards = [partial(run, *each) for each in zip(bodies, contexts, strict=True)]
        try:
            return run_in_lockstep(shards).outputs
        except SkynetError:
            raise
        except Exception as error:  # models raise anything
            raise UnsupportedModel(
                f"model_type {self._arch.model_type!r}: {name}, cut over {len(parts)} shards by "
                f"Transformers' plan, fails: {type(error).__name__}: {error}"
            ) from error

    def _body(self, part: ShardPlan) -> Body:
        return Body(self._loader(part), KVLayout.of(self._plan))

    def _loader(self, part: ShardPlan) -> TransformersLoader:
        return TransformersLoader(self._arch, part, self._fetch, self._dtypes, CPU)

    def _context(self, part: ShardPlan, rows: tuple[Row, ...]) -> StepContext:
        kv = KVLayout.of(self._plan)
        layout = StepLayout.of(self._loader(part), kv, self._arch.windows)
        return make_context(Step(self._plan.epoch, 1, rows, 1), layout)
