"""Puts both sides next to each other: our shards run wherever theirs has been.

Knows what is compared with what; how each side computes is `ours.py`'s and `theirs.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check.backend_shards import BackendShards
from skynet.check.compare import Difference, difference, row_scale
from skynet.check.model_head import Question, model_head_of
from skynet.check.reference_layer import PRODUCTS, Cuts, DenseLayer
from skynet.check.report import Answer, Finding, Place, Report
from skynet.check.skynet_shards import LayerRun, SkynetShards, add_up
from skynet.check.stacks import CheckedStack
from skynet.errors import PlanError
from skynet.layers.regions import Fetch
from skynet.planning.plan import Plan, ShardPlan

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


class Comparison:
    """Runs our shards wherever theirs has been, and writes down how far they are apart."""

    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        fetch: Fetch,
        stacks: Sequence[CheckedStack],
        question: Question,
        report: Report,
        weights: dict[str, int],
        progress: Progress | None,
        num_layers: int,
    ) -> None:
        """num_layers: how many are compared; progress is told of them and of each stack's ends."""
        self._arch, self._plan, self._report = arch, plan, report
        self._stacks, self._weights, self._progress = stacks, weights, progress
        self._model_head, self._question = model_head_of(arch), question
        self._skynet: SkynetShards
        if isinstance(arch, TransformersArchitecture):
            self._skynet = BackendShards(arch, plan, fetch, stacks)
        else:
            self._skynet = SkynetShards(arch, plan, fetch, stacks)
        self._num_places = num_layers + 2 * len(stacks)
        self._own: torch.Tensor | None = None  # hidden states that only our layers have seen
        self._rows: torch.Tensor | None = None  # of the next embedding's table
        self._last: torch.Tensor | None = None  # their output of the last layer
        # What the encoder has read, theirs and our own.
        self._encoder_outputs: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def cuts(self, layer: int) -> Cuts:
        """Of each product of a layer, each shard's inputs."""
        stack = self._stack_of(layer)
        size, parts = stack.arch.head_dim, self._parts(stack, layer)
        heads = [slice(part.heads.start * size, part.heads.stop * size) for part in parts]
        columns = [slice(part.columns.start, part.columns.stop) for part in parts]
        return {"o": heads, "cross_o": heads, "down": columns}

    def embedding(self, rows: torch.Tensor) -> None:
        # Without a file there are no partials that could be compared with them.
        self._rows = None if isinstance(self._arch, TransformersArchitecture) else rows

    def layer(self, layer: int, x: torch.Tensor, out: torch.Tensor, dense: DenseLayer) -> None:
        x, out, stack = x.float(), out.float(), self._stack_of(layer)
        if layer == stack.layers.start:
            self._compare_embedding(stack, x)
        shards, (encoder_output, skynet_encoder_output) = (
            self._skynet.load_layer(stack, layer),
            self._encoder_outputs,
        )
        run = shards.run(x, encoder_output)
        findings = [*self._partials(layer, run, dense), *_outputs(run, out)]
        self._add(stack.layer_name(layer), layer, findings, is_layer=True)
        if self._own is not None:
            self._own = shards.run(self._own, skynet_encoder_output).outputs[0]
        self._last = out

    def encoder_output(self, states: torch.Tensor) -> None:
        last, own = self._after_layers()
        states, run = states.float(), self._skynet.remembered(last)
        self._add("encoder output", self._arch.encoder_layers, _outputs(run, states))
        self._encoder_outputs = states, self._skynet.remembered(own).outputs[0]

    def end(self, result: torch.Tensor) -> None:
        result = result.float()
        last, hidden = self._after_layers()
        rows, model_head = self._question.rows, self._model_head
        found, own = model_head.skynet(self._skynet, [last, hidden[rows]])
        scale, findings = row_scale(result), []
        for piece in found:
            reference = result[:, piece.start : piece.start + piece.values.shape[1]]
            apart = difference(piece.values, reference, scale)
            findings.append(Finding(model_head.what, piece.shard, _shifted(apart, piece.start)))
        self._add(model_head.place, self._plan.num_layers - 1, findings)
        together = torch.cat([piece.values for piece in own], dim=1)
        self._report.answer = self._answer(together, result[rows])

    def _answer(self, skynet: torch.Tensor, reference: torch.Tensor) -> Answer:
        question = self._question
        skynet, reference = question.vector(skynet), question.vector(reference)
        apart = difference(skynet, reference)
        if question.spell is None:
            return Answer(question.what, apart)
        best, their_best = int(skynet[0].argmax()), int(reference[0].argmax())
        return Answer(question.what, apart, best, their_best, question.spell(best))

    def _stack_of(self, layer: int) -> CheckedStack:
        return next(stack for stack in self._stacks if layer in stack.layers)

    def _parts(self, stack: CheckedStack, layer: int) -> list[ShardPlan]:
        """What of the stack each shard of a layer's stage has."""
        return [stack.part(part) for part in self._skynet.parts(self._plan.stage_of(layer))]

    def _after_layers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states after a stack's last layer, theirs and our own."""
        if self._last is None or self._own is None:
            raise PlanError(f"{self._arch.model_type}: Transformers ran no layer")
        return self._last, self._own

    def _compare_embedding(self, stack: CheckedStack, x: torch.Tensor) -> None:
        first, run = stack.layers.start, self._skynet.embed(stack)
        findings = []
        if self._rows is not None:
            ids, scale = torch.tensor(stack.ids), row_scale(self._rows)
            for shard, part in enumerate(self._parts(stack, first)):
                own = (ids >= part.vocab.start) & (ids < part.vocab.stop)
                apart = difference(run.partials[0][shard], self._rows * own[:, None], scale)
                findings.append(Finding("rows of tokens", shard, apart))
        self._add(f"{stack.name}embedding", first, [*findings, *_outputs(run, x)])
        self._own, self._rows = run.outputs[0], None

    def _partials(self, layer: int, run: LayerRun, dense: DenseLayer) -> list[Finding]:
        """Of each sum of the layer, in order, each shard's part of it."""
        expected = self._expected(layer, dense)
        findings = []
        for (what, reference), skynet in zip(expected, run.partials, strict=True):
            scale = row_scale(*reference, add_up(reference))
            findings += [
                Finding(what, shard, difference(mine, other, scale))
                for shard, (mine, other) in enumerate(zip(skynet, reference, strict=True))
            ]
        return findings

    def _expected(self, layer: int, dense: DenseLayer) -> list[tuple[str, list[torch.Tensor]]]:
        sums = []
        if dense.norm_inputs is not None:
            sums.append(("mean squares of queries and keys", self._mean_squares(layer, dense)))
        if self._arch.parallel:
            both = [a + b for a, b in zip(*dense.partials.values(), strict=True)]
            return [*sums, ("attention and MLP", both)]
        return [*sums, *((PRODUCTS[role], parts) for role, parts in dense.partials.items())]

    def _mean_squares(self, layer: int, dense: DenseLayer) -> list[torch.Tensor]:
        """Of each shard (tokens, 2); a KV head that shards share counts in the first of them."""
        size, found = self._arch.head_dim, []
        queries, keys = dense.norm_inputs or (torch.empty(0), torch.empty(0))
        for part in self._parts(self._stack_of(layer), layer):
            q = queries[:, part.heads.start * size : part.heads.stop * size]
            k = keys[:, part.kv_heads.start * size : part.kv_heads.stop * size]
            first = part.heads.start == part.kv_heads.start * self._arch.group
            pair = [q.square().sum(1), k.square().sum(1) * first]
            totals = [queries.shape[1], keys.shape[1]]
            found.append(torch.stack([a / b for a, b in zip(pair, totals, strict=True)], dim=1))
        return found

    def _add(self, name: str, layer: int, findings: list[Finding], is_layer: bool = False) -> None:
        """One more place, in the stage of this layer."""
        stage, places = self._plan.stage_of(layer), self._report.places
        places.append(Place(name, stage, tuple(findings), is_layer))
        if self._progress is not None:
            total = sum(self._weights.values())
            self._progress("checking", total * len(places) // self._num_places, total)


def _outputs(run: LayerRun, reference: torch.Tensor) -> list[Finding]:
    return [
        Finding("output", shard, difference(skynet, reference))
        for shard, skynet in enumerate(run.outputs)
    ]


def _shifted(found: Difference, by: int) -> Difference:
    return Difference(found.absolute, found.relative, found.token, found.index + by)
