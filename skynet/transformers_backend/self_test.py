"""The test that a model on the Transformers backend must pass before it is staged.

A layer of each kind, the embedding and the head are run cut into shards and uncut, one at a time,
on the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.checkpoint.tensor_plans import model_files
from skynet.errors import UnsupportedModel
from skynet.layers.dtypes import DTYPES
from skynet.planning.split import PlanOptions, make_plan
from skynet.reference.difference import DRIFT, LIMITS, difference, row_scale
from skynet.reference.forward import Reference
from skynet.reference.layer import DenseLayer
from skynet.reference.prompt import stack_inputs
from skynet.transformers_backend.shard_group import ShardGroup

DTYPE = "float32"  # in which a mistake cannot pass for rounding

Progress = Callable[[str, int, int], None]  # activity, bytes done, bytes in total


def self_test(
    checkpoint: Checkpoint,
    arch: TransformersArchitecture,
    shards: int,
    progress: Progress | None = None,
) -> None:
    """Compare a layer of each kind, the embedding and the head, cut and uncut.

    shards: of the model's plan; the test takes at least two, as one would not show the cut.

    Raises:
        UnsupportedModel: they differ by more than rounding, or cannot be run; names the places.
    """
    (prompt,) = stack_inputs(arch, model_files(checkpoint), None, checkpoint.name)
    shards = min(max(2, shards), arch.num_heads)
    options = PlanOptions(
        checkpoint.name, checkpoint.name, DTYPE, num_slots=1, slot_tokens=len(prompt)
    )
    plan = make_plan(arch, options, stages=1, shards=shards)
    fetch = CheckpointFetch(checkpoint, arch)
    test = _SelfTest(ShardGroup(arch, plan, fetch, prompt), len(arch.samples) + 2, fetch, progress)
    Reference(checkpoint, arch, DTYPES[DTYPE]).run([prompt], test, only=arch.samples)
    if not test.differing and not test.drifted:
        return
    numbers = ", ".join(f"{place} by {apart:.1e}" for place, apart in test.differing.items())
    raise UnsupportedModel(
        f"model_type {arch.model_type!r}: Transformers' layers, cut over {shards} shards by their "
        f"tensor-parallel plan, compute other numbers than uncut. Relative to a row's largest "
        f"number they differ in {numbers or 'the logits alone'}; limit {LIMITS[DTYPE]:g}. The "
        "model needs a family file: docs/adding-a-model.md"
    )


class _SelfTest:
    """A `Visitor` that runs the shards after each uncut part.

    differing: place -> relative difference, where it is beyond the limit.
    drifted: whether the layers, each on the output of the one before, predict another token.
    """

    def __init__(
        self, shards: ShardGroup, num_places: int, fetch: CheckpointFetch, progress: Progress | None
    ) -> None:
        self._shards, self._progress = shards, progress
        self._num_places, self._num_bytes = num_places, fetch.num_bytes
        self._places_done = 0
        self._chained: torch.Tensor | None = None  # hidden states through cut layers only
        self._last = torch.empty(0)  # the uncut layer's output
        self.differing: dict[str, float] = {}
        self.drifted = False

    def embedding(self, rows: torch.Tensor) -> None:
        """Compared as the first layer's input."""

    def layer(self, layer: int, x: torch.Tensor, out: torch.Tensor, dense: DenseLayer) -> None:
        x, out = x.float(), out.float()
        if self._chained is None:
            outputs = self._shards.embed()
            self._compare("embedding", outputs, [x] * len(outputs))
            self._chained = outputs[0]
        self._shards.load_layer(layer)
        outputs = self._shards.run_layer(x)
        self._compare(f"layer {layer}", outputs, [out] * len(outputs))
        self._chained = self._shards.run_layer(self._chained)[0]
        self._last = out

    def encoder_output(self, states: torch.Tensor) -> None:
        raise UnsupportedModel("encoder-decoders are not supported on the Transformers backend")

    def output(self, result: torch.Tensor) -> None:
        result = result.float()
        if self._chained is None:
            raise UnsupportedModel("Transformers ran no layer")
        by_shard, chained = self._shards.logits([self._last, self._chained[-1:]])
        self._compare("head", by_shard, result.split([part.shape[1] for part in by_shard], dim=1))
        together, expected = torch.cat(chained, dim=1), result[-1:]
        apart = difference(together, expected).relative
        same = bool(together.argmax() == expected.argmax())
        self.drifted = apart > DRIFT * LIMITS[DTYPE] and not same

    def _compare(
        self, place: str, outputs: list[torch.Tensor], expected: Sequence[torch.Tensor]
    ) -> None:
        """Compare each shard's output with the uncut one, or with its part of it."""
        scale = row_scale(*expected)
        pairs = zip(outputs, expected, strict=True)
        worst = max(difference(output, whole, scale).relative for output, whole in pairs)
        if worst > LIMITS[DTYPE]:
            self.differing[place] = worst
        self._places_done += 1
        if self._progress is not None:
            done = self._num_bytes * self._places_done // self._num_places
            self._progress("checking", done, self._num_bytes)
