"""Runs SkyNet's shards after each part of the reference, and compares the two.

Knows what is compared with what; how each side computes is `skynet_shards.py`'s and
`skynet/reference/`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check.model_head import Question, model_head_of
from skynet.check.partials import compare_partials, cuts_of
from skynet.check.report import Answer, Finding, Place
from skynet.check.skynet_shards import SkynetShards
from skynet.check.stacks import CheckedStack
from skynet.errors import PlanError
from skynet.layers.lockstep import ShardOutputs
from skynet.planning.plan import ShardPlan
from skynet.planning.units import part_of_kind
from skynet.reference.difference import difference, row_scale
from skynet.reference.layer import Cuts, DenseLayer


class Comparison:
    """A `Visitor` that passes each comparison to `add`.

    SkyNet's layers run twice: on the reference's input, to compare the layer, and on the output of
    SkyNet's layer before (`chained`), to compare the answer.
    """

    def __init__(
        self, shards: SkynetShards, question: Question, add: Callable[[Place], None]
    ) -> None:
        self._arch, self._shards = shards.arch, shards
        self._question, self._add_place = question, add
        self._chained: torch.Tensor | None = None
        self._last: torch.Tensor | None = None  # the reference's output of the last layer
        self._table_rows: torch.Tensor | None = None  # of the next stack's embedding
        self._encoder_output: torch.Tensor | None = None
        self._chained_encoder_output: torch.Tensor | None = None
        self.answer: Answer | None = None

    def cuts(self, layer: int) -> Cuts:
        """The inputs of each product of a layer that each shard has."""
        stack = self._stack_of(layer)
        return cuts_of(*self._of_kind(stack, layer))

    def embedding(self, rows: torch.Tensor) -> None:
        """Compared with the shards' partials before the next layer."""
        # The Transformers backend has no partials to compare them with.
        is_backend = isinstance(self._arch, TransformersArchitecture)
        self._table_rows = None if is_backend else rows

    def layer(self, layer: int, x: torch.Tensor, out: torch.Tensor, dense: DenseLayer) -> None:
        x, out, stack = x.float(), out.float(), self._stack_of(layer)
        if layer == stack.layers.start:
            self._compare_embedding(stack, x)
        shards = self._shards.load_layer(stack, layer)
        run = shards.run(x, self._encoder_output)
        findings = compare_partials(*self._of_kind(stack, layer), run, dense)
        self._add(stack.layer_name(layer), layer, [*findings, *_outputs(run, out)], is_layer=True)
        if self._chained is not None:
            self._chained = shards.run(self._chained, self._chained_encoder_output).outputs[0]
        self._last = out

    def encoder_output(self, states: torch.Tensor) -> None:
        last, chained = self._after_layers()
        states, run = states.float(), self._shards.encoder_output(last)
        self._add("encoder output", self._arch.encoder_layers, _outputs(run, states))
        self._encoder_output = states
        self._chained_encoder_output = self._shards.encoder_output(chained).outputs[0]

    def output(self, result: torch.Tensor) -> None:
        result, rows = result.float(), self._question.rows
        last, chained = self._after_layers()
        head = model_head_of(self._arch)
        results, chained_results = head.run(self._shards.head, [last, chained[rows]])
        scale, findings = row_scale(result), []
        for part in results:
            reference = result[:, part.start : part.start + part.values.shape[1]]
            apart = difference(part.values, reference, scale)
            apart = replace(apart, index=apart.index + part.start)
            findings.append(Finding(head.what, part.shard, apart))
        self._add(head.place, self._arch.total_layers - 1, findings)
        together = torch.cat([part.values for part in chained_results], dim=1)
        self.answer = self._answer(together, result[rows])

    def _answer(self, skynet: torch.Tensor, reference: torch.Tensor) -> Answer:
        question = self._question
        skynet, reference = question.vector(skynet), question.vector(reference)
        apart = difference(skynet, reference)
        if question.spell is None:
            return Answer(question.what, apart)
        best = int(skynet[0].argmax())
        return Answer(question.what, apart, best, int(reference[0].argmax()), question.spell(best))

    def _stack_of(self, layer: int) -> CheckedStack:
        return next(stack for stack in self._shards.stacks if layer in stack.layers)

    def _of_kind(self, stack: CheckedStack, layer: int) -> tuple[Architecture, list[ShardPlan]]:
        """The architecture of a layer's kind, and each shard's part of it."""
        arch, parts = stack.arch, self._parts(stack, layer)
        kind = arch.at(layer - stack.layers.start)
        return kind, [part_of_kind(arch, kind, part) for part in parts]

    def _parts(self, stack: CheckedStack, layer: int) -> list[ShardPlan]:
        """The stack's part in each shard of a layer's stage."""
        return [stack.part(part) for part in self._shards.parts(layer)]

    def _after_layers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states after a stack's last layer: the reference's, and SkyNet's chained ones."""
        if self._last is None or self._chained is None:
            raise PlanError(f"{self._arch.model_type}: Transformers ran no layer")
        return self._last, self._chained

    def _compare_embedding(self, stack: CheckedStack, x: torch.Tensor) -> None:
        first, run = stack.layers.start, self._shards.embed(stack)
        findings = []
        if self._table_rows is not None:
            ids, scale = torch.tensor(stack.ids), row_scale(self._table_rows)
            for shard, part in enumerate(self._parts(stack, first)):
                in_shard = (ids >= part.vocab.start) & (ids < part.vocab.stop)
                expected = self._table_rows * in_shard[:, None]
                apart = difference(run.partials[0][shard], expected, scale)
                findings.append(Finding("rows of tokens", shard, apart))
        self._add(f"{stack.name}embedding", first, [*findings, *_outputs(run, x)])
        self._chained, self._table_rows = run.outputs[0], None

    def _add(self, name: str, layer: int, findings: list[Finding], is_layer: bool = False) -> None:
        """Add a place in the stage of this layer."""
        stage = self._shards.plan.stage_of(layer)
        self._add_place(Place(name, stage, tuple(findings), is_layer))


def _outputs(run: ShardOutputs, reference: torch.Tensor) -> list[Finding]:
    return [
        Finding("output", shard, difference(skynet, reference))
        for shard, skynet in enumerate(run.outputs)
    ]
