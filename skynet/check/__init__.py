"""A parity test of one's own checkpoint, layer by layer, without Redis and without workers.

Each layer of Transformers' model and the shards of ours get the same input, theirs, so that an
error is named where it arises and not where it is seen. On either side one layer at a time is in
memory. `theirs.py` runs theirs, `ours.py` ours, `comparison.py` puts them side by side, and
`ending.py` says what comes after the last layer.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Collection

from skynet.check.compare import LIMITS
from skynet.check.comparison import Comparison, Progress
from skynet.check.ending import ending_of, question_of
from skynet.check.ours import CheckpointFetch
from skynet.check.prompt import prompt_ids
from skynet.check.report import Report
from skynet.check.theirs import Theirs
from skynet.derived.opening import open_model
from skynet.layers.shard_model import DTYPES
from skynet.layers.weights import Fetch
from skynet.models import Architecture, load_architecture
from skynet.models.checkpoint import Checkpoint
from skynet.models.derived import Derived
from skynet.planning.plan import Plan
from skynet.planning.split import make_plan
from skynet.settings import settings

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
    ids = prompt_ids(arch, checkpoint.text_files(), prompt, checkpoint.name)
    plan = plan_of(checkpoint, arch, ids, stages, shards, dtype)
    report = new_report(checkpoint, arch, plan, ids)
    compare(checkpoint, arch, plan, ids, report, progress, fetch)
    report.peak_bytes = _peak_bytes()
    return report


def plan_of(
    checkpoint: Checkpoint, arch: Architecture, ids: list[int], stages: int, shards: int, dtype: str
) -> Plan:
    """A plan for one prompt alone."""
    return make_plan(
        arch,
        model=checkpoint.name,
        name=checkpoint.name,
        stages=stages,
        shards=shards,
        dtype=dtype,
        num_slots=1,
        slot_tokens=len(ids),
    )


def compare(
    checkpoint: Checkpoint,
    arch: Architecture,
    plan: Plan,
    ids: list[int],
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
        ids,
        question_of(arch, checkpoint.text_files(), ids),
        report,
        {name: tensor.num_bytes for name, tensor in source.plans.items()},
        progress,
        arch.num_layers if only is None else len(only),
    )
    theirs = Theirs(checkpoint, arch, ending_of(arch).theirs, DTYPES[plan.dtype], comparison.cuts)
    theirs.run(ids, comparison, only)


def new_report(checkpoint: Checkpoint, arch: Architecture, plan: Plan, ids: list[int]) -> Report:
    """A report without places: what is compared with what, and what is not."""
    from importlib.metadata import version

    stages, shards = plan.shape
    notes = [f"{arch.notice}; compared with the same uncut"] if isinstance(arch, Derived) else []
    windows = [window for window in arch.windows if window is not None]
    # Of an encoder they are how far a token sees, not how many tokens.
    if windows and min(windows) + arch.bidirectional >= len(ids):
        notes.append(
            f"not tried: the end of windows of {min(windows)} tokens, as the prompt has "
            f"{len(ids)}; a longer --prompt reaches it"
        )
    if arch.num_experts and plan.dtype != "float32":
        notes.append(
            "experts that a token likes equally up to rounding may be chosen otherwise in "
            f"{plan.dtype}, which looks like a mistake; --dtype float32 tells"
        )
    return Report(
        model=checkpoint.name,
        model_type=arch.model_type,
        stages=stages,
        shards=shards,
        dtype=plan.dtype,
        limit=LIMITS[plan.dtype],
        versions=f"Transformers {version('transformers')}, torch {version('torch')}",
        num_tokens=len(ids),
        notes=notes,
    )


def _peak_bytes() -> int:
    """The most memory this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
