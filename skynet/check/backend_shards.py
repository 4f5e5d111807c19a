"""Our side of a family without a file: the shards of one layer at a time, in two steps.

What only our running adds is tried too: a prompt in two chunks, and in the second step another row,
which must come out as it did alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check.compare import LIMITS, difference
from skynet.check.skynet_shards import CPU, LayerRun, LayerShards, Piece, SkynetShards, in_rounds
from skynet.check.stacks import CheckedStack
from skynet.errors import SkynetError, UnsupportedModel
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext, StepLayout, make_context
from skynet.layers.norm import AllReduce
from skynet.layers.regions import Fetch
from skynet.planning.plan import Plan, ShardPlan
from skynet.planning.ranges import Range
from skynet.transformers_backend.body import Body
from skynet.transformers_backend.loader import TransformersLoader
from skynet.wire.step import Row, Step

SLOTS = 2
OTHER_ROW = 2  # tokens of the prompt that are read again, in the other slot

Run = Callable[[Body, StepContext, AllReduce], torch.Tensor]


class BackendShards(SkynetShards):
    """The same of a model whose layers are Transformers'."""

    _arch: TransformersArchitecture

    def __init__(
        self,
        arch: TransformersArchitecture,
        plan: Plan,
        fetch: Fetch,
        stacks: Sequence[CheckedStack],
    ) -> None:
        super().__init__(arch, replace(plan, num_slots=SLOTS), fetch, stacks)
        self._prompt = stacks[0].row.tokens
        self._bodies: dict[ShardPlan, Body] = {}  # what layers are put into, one after the other

    def embed(self, stack: CheckedStack) -> LayerRun:
        """The hidden states before layer 0, of each shard; no partials."""
        bodies = []
        for part in self.parts(0):
            bodies.append(self._body(part))
            bodies[-1].load_tokens(self._transformers_loader(part))
        row = Row(0, 0, self._prompt, len(self._prompt))
        outputs = self._together("the embedding", bodies, self.parts(0), (row,), _tokens)
        return LayerRun([], outputs)

    def load_layer(self, stack: CheckedStack, layer: int) -> BackendLayerShards:
        """All shards of a layer, in place of the last one that was loaded."""
        parts = self.parts(self._plan.stage_of(layer))
        for part in parts:
            if part not in self._bodies:
                self._bodies[part] = self._body(part)
            body = self._bodies[part]
            body.unload_layers()
            body.load_layer(layer, self._transformers_loader(part))
        return BackendLayerShards(self, layer, parts)

    def logits(self, hidden: list[torch.Tensor]) -> list[list[Piece]]:
        """Of each `hidden` (rows, hidden), the logits of each shard's part of the vocabulary."""
        logits: list[list[Piece]] = [[] for _ in hidden]
        for shard, part in enumerate(self._last_parts):
            body = self._body(part)
            body.load_head(self._transformers_loader(part))
            for found, x in zip(logits, hidden, strict=True):
                found.append(Piece(shard, part.vocab.start, body.head(x)))
        return logits

    def run_layer(
        self, layer: int, parts: tuple[ShardPlan, ...], rows: tuple[Row, ...], x: torch.Tensor
    ) -> list[torch.Tensor]:
        """`x` (tokens of all rows, hidden) through a layer that is loaded, by shard."""

        def run(body: Body, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
            return body.run(context, Range(layer, layer + 1), x, all_reduce)

        bodies = [self._bodies[part] for part in parts]
        return self._together(f"layer {layer}", bodies, parts, rows, run)

    def rows(self) -> list[tuple[Row, ...]]:
        """The steps in which the prompt is read, and in the last the other row."""
        ids, count = self._prompt, len(self._prompt)
        other = Row(1, 0, ids[:OTHER_ROW], count)
        if count == 1:
            return [(Row(0, 0, ids, count), other)]
        last = Row(0, count - 1, ids[-1:], count)
        return [(Row(0, 0, ids[:-1], count),), (last, other)]

    def check_rows(self, layer: int, alone: torch.Tensor, beside: torch.Tensor) -> None:
        """Raise UnsupportedModel if a row is another one for what stands beside it."""
        if not alone.isfinite().all():
            return  # it is wrong alone already, which the comparison with theirs will say
        apart, limit = difference(beside, alone).relative, LIMITS[self._plan.dtype]
        if apart > limit:
            raise UnsupportedModel(
                f"model_type {self._arch.model_type!r}: layer {layer} gives a row other numbers "
                f"beside another row than alone ({apart:.1e} of its largest, limit {limit:g}): its "
                "tokens see others by another way than attention"
            )

    def _together(
        self,
        what: str,
        bodies: list[Body],
        parts: tuple[ShardPlan, ...],
        rows: tuple[Row, ...],
        run: Run,
    ) -> list[torch.Tensor]:
        """What each shard gets."""
        contexts = [self._laid_out(part, rows) for part in parts]
        shards = [partial(run, *each) for each in zip(bodies, contexts, strict=True)]
        try:
            return in_rounds(shards).outputs
        except SkynetError:
            raise
        except Exception as error:  # each model has errors of its own
            raise UnsupportedModel(
                f"model_type {self._arch.model_type!r}: {what}, cut over {len(parts)} shards by "
                f"Transformers' plan, fails: {type(error).__name__}: {error}"
            ) from error

    def _body(self, part: ShardPlan) -> Body:
        return Body(self._transformers_loader(part), KVLayout.of(self._plan))

    def _transformers_loader(self, part: ShardPlan) -> TransformersLoader:
        return TransformersLoader(self._arch, part, self._fetch, self._dtype, CPU)

    def _laid_out(self, part: ShardPlan, rows: tuple[Row, ...]) -> StepContext:
        load, kv = self._transformers_loader(part), KVLayout.of(self._plan)
        layout = StepLayout.of(load, kv, self._arch.windows)
        return make_context(Step(self._plan.epoch, 1, rows, 1), layout)


class BackendLayerShards(LayerShards):
    """The shards of the layer that is loaded."""

    def __init__(self, skynet: BackendShards, layer: int, parts: tuple[ShardPlan, ...]) -> None:
        super().__init__([])  # not our layers
        self._skynet, self._layer, self._parts = skynet, layer, parts

    def run(self, x: torch.Tensor, encoder_output: torch.Tensor | None = None) -> LayerRun:
        """`x` (tokens, hidden) float32 through the layer; no partials.

        Raises:
            UnsupportedModel: rows of a batch disturb each other.
        """
        made: list[list[torch.Tensor]] = [[] for _ in self._parts]
        for rows in self._skynet.rows():
            first = rows[0]
            given = torch.cat([x[row.start : row.stop] for row in rows])
            outputs = self._skynet.run_layer(self._layer, self._parts, rows, given)
            for own, output in zip(made, outputs, strict=True):
                own.append(output[: len(first.tokens)])
                if len(rows) > 1:
                    beside = output[len(first.tokens) :]
                    self._skynet.check_rows(self._layer, torch.cat(own)[: len(beside)], beside)
        return LayerRun([], [torch.cat(own) for own in made])


def _tokens(body: Body, context: StepContext, all_reduce: AllReduce) -> torch.Tensor:
    return body.run(context, Range(0, 0), None, all_reduce)
