"""The test that every family without a file has to pass before any of it is staged."""

from __future__ import annotations

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check import compare, new_report, plan_of
from skynet.check.comparison import Progress
from skynet.check.prompt import token_ids_read
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.tensor_plans import model_files
from skynet.errors import UnsupportedModel

DTYPE = "float32"  # in which a mistake cannot pass for rounding


def self_test(
    checkpoint: Checkpoint,
    arch: TransformersArchitecture,
    shards: int,
    progress: Progress | None = None,
) -> None:
    """Run a layer of each kind, and both ends, beside Transformers' uncut ones, one at a time.

    shards: that the model is to be cut into; two at least, for one would show nothing of the cut.

    Raises:
        UnsupportedModel: they differ by more than rounding, or cannot be run; names where.
    """
    reads = token_ids_read(arch, model_files(checkpoint), None, checkpoint.name)
    shards = min(max(2, shards), arch.num_heads)
    plan = plan_of(checkpoint, arch, reads, 1, shards, DTYPE)
    report = new_report(checkpoint, arch, plan, reads)
    compare(checkpoint, arch, plan, reads, report, progress, only=arch.samples)
    if report.equal:
        return
    numbers = ", ".join(
        f"{place.name} by {place.worst.found.relative:.1e}" for place in report.differing
    )
    raise UnsupportedModel(
        f"model_type {arch.model_type!r}: Transformers' own layers, cut over {shards} shards by "
        f"its tensor-parallel plan, do not compute what they do uncut. Of a row's largest number "
        f"they differ in {numbers or 'the logits alone'}; limit {report.limit:g}. The model needs "
        "a file of its own: docs/adding-a-model.md"
    )
