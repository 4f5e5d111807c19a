"""A parity test of one's own checkpoint, layer by layer, without Redis and without workers.

Each layer of Transformers' model and the shards of ours get the same input, theirs, so that an
error is named where it arises and not where it is seen. On either side one layer at a time is in
memory. `theirs.py` runs theirs, `ours.py` ours, `comparison.py` puts them side by side, `stacks.py`
says what is an encoder's and what a decoder's, and `ending.py` what comes after the last layer.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Collection

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.check.compare import LIMITS
from skynet.check.comparison import Comparison, Progress
from skynet.check.model_head import model_head_of, question_of
from skynet.check.prompt import token_ids_read
from skynet.check.reference import Reference
from skynet.check.report import Report
from skynet.check.skynet_shards import CheckpointFetch
from skynet.check.stacks import stacks_of
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.tensor_plans import model_files
from skynet.layers.regions import Fetch
from skynet.layers.shard_model import DTYPES
from skynet.models.registry import load_architecture
from skynet.planning.plan import Plan
from skynet.planning.split import PlanOptions, make_plan
from skynet.settings import settings
from skynet.transformers_backend.opening import open_model

__all__ = ["Report", "check_model"]


def check_model(
    model: str,
    stages: int = 2,
    shards: int = 2,
    *,
    prompt: str | None = None,
    dtype: str = "float32",
    progress: Progress | None = None,
    fetch: Fetch | None = None,
) -> Report:
    """Compare SkyNet's shards with Transformers on one prompt.

    model: as of `skysplit`.
    dtype: what both compute in. float32 tells rounding from mistakes, whatever the checkpoint is
        stored in.
    fetch: where our shards' weights come from; the checkpoint by default.

    Raises:
        CheckpointError, UnsupportedModel, PlanError, BadRequest: what cannot be compared, by name.
        ConfigurationError: Transformers is not installed.
    """
    checkpoint = open_model(model, settings().cache_dir)
    arch = load_architecture(checkpoint.config)
    files = model_files(checkpoint)
    reads = token_ids_read(arch, files, prompt, checkpoint.name)
    plan = plan_of(checkpoint, arch, reads, stages, shards, dtype)
    report = new_report(checkpoint, arch, plan, reads)
    compare(checkpoint, arch, plan, reads, report, progress, fetch)
    report.peak_bytes = _peak_bytes()
    return report


def plan_of(
    checkpoint: Checkpoint,
    arch: Architecture,
    reads: list[list[int]],
    stages: int,
    shards: int,
    dtype: str,
) -> Plan:
    """A plan for one prompt alone; `reads` are the token ids that each stack reads."""
    options = PlanOptions(
        model=checkpoint.name,
        name=checkpoint.name,
        dtype=dtype,
        num_slots=1,
        slot_tokens=max(len(ids) for ids in reads),
    )
    return make_plan(arch, options, stages=stages, shards=shards)


def compare(
    checkpoint: Checkpoint,
    arch: Architecture,
    plan: Plan,
    reads: list[list[int]],
    report: Report,
    progress: Progress | None,
    fetch: Fetch | None = None,
    only: Collection[int] | None = None,
) -> None:
    """Fill the report in; `only` are the layers that are compared, all by default."""
    source = CheckpointFetch(checkpoint, arch)
    comparison = Comparison(
        arch,
        plan,
        fetch or source,
        stacks_of(arch, reads),
        question_of(arch, model_files(checkpoint), reads[-1]),
        report,
        {name: tensor.num_bytes for name, tensor in source.plans.items()},
        progress,
        arch.total_layers if only is None else len(only),
    )
    reference = Reference(
        checkpoint, arch, model_head_of(arch).reference, DTYPES[plan.dtype], comparison.cuts
    )
    reference.run(reads, comparison, only)


def new_report(
    checkpoint: Checkpoint, arch: Architecture, plan: Plan, reads: list[list[int]]
) -> Report:
    """A report without places: what is compared with what, and what is not."""
    from importlib.metadata import version

    (stages, shards), num_tokens = plan.shape, len(reads[0])
    return Report(
        model=checkpoint.name,
        model_type=arch.model_type,
        stages=stages,
        shards=shards,
        dtype=plan.dtype,
        limit=LIMITS[plan.dtype],
        versions=f"Transformers {version('transformers')}, torch {version('torch')}",
        num_tokens=num_tokens,
        notes=_notes(arch, plan, num_tokens),
    )


def _notes(arch: Architecture, plan: Plan, num_tokens: int) -> list[str]:
    """What the comparison does not tell."""
    notes = (
        [f"{arch.notice}; compared with the same uncut"]
        if isinstance(arch, TransformersArchitecture)
        else []
    )
    reaches = f"as the prompt has {num_tokens}; a longer --prompt reaches"
    windows = [window for window in arch.windows if window is not None]
    # Of an encoder they are how far a token sees, not how many tokens.
    if windows and min(windows) + arch.bidirectional >= num_tokens:
        notes.append(f"not tried: the end of windows of {min(windows)} tokens, {reaches} it")
    if arch.relative and arch.relative.max_distance >= num_tokens:
        notes.append(
            f"not tried: distances of {num_tokens} to {arch.relative.max_distance} tokens, which "
            f"have relative positions of their own, {reaches} them"
        )
    if arch.num_experts and plan.dtype != "float32":
        notes.append(
            "experts that a token likes equally up to rounding may be chosen otherwise in "
            f"{plan.dtype}, which looks like a mistake; --dtype float32 tells"
        )
    return notes


def _peak_bytes() -> int:
    """The most memory this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
