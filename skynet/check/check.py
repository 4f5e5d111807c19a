"""The comparison of one checkpoint, from the command's arguments to the report."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass

from skynet.architecture.architecture import Architecture
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.architecture.window import Chunk
from skynet.check.backend_shards import BackendShards
from skynet.check.comparison import Comparison
from skynet.check.model_head import question_of
from skynet.check.report import Place, Report
from skynet.check.skynet_shards import SkynetShards
from skynet.check.stacks import stacks_of
from skynet.checkpoint.bad_numbers import bad_tensors
from skynet.checkpoint.fetch import CheckpointFetch
from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.staged_form import in_staged_form
from skynet.checkpoint.tensor_plans import model_files, tensor_plans
from skynet.layers.dtypes import DTYPES
from skynet.layers.regions import Fetch
from skynet.models.registry import load_architecture
from skynet.planning.plan import Plan
from skynet.planning.split import PlanOptions, make_plan
from skynet.reference.difference import LIMITS
from skynet.reference.forward import Reference
from skynet.reference.prompt import stack_inputs
from skynet.settings import settings
from skynet.transformers_backend.opening import open_model

Progress = Callable[[str, int, int], None]  # activity, bytes done, bytes in total


@dataclass(frozen=True)
class CheckedModel:
    """A model as it would be staged, a plan for it, and the token ids for each of its stacks."""

    source: ModelSource
    arch: Architecture
    plan: Plan
    inputs: list[list[int]]


def check_model(
    model: str,
    stages: int = 2,
    shards: int = 2,
    *,
    prompt: str | None = None,
    dtype: str = "float32",
    experts: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """Compare SkyNet's shards with Transformers on one prompt.

    model: as of `skysplit`.
    dtype: of both sides' computation. float32 tells rounding from mistakes, whatever dtype the
        checkpoint is stored in.
    experts: as of `skysplit`.

    Raises:
        CheckpointError, UnsupportedModel, PlanError, BadRequest: names what cannot be compared.
        ConfigurationError: Transformers is not installed.
    """
    return compare(open_checked(model, (stages, shards), prompt, dtype, experts), progress)


def open_checked(
    model: str,
    shape: tuple[int, int],
    prompt: str | None = None,
    dtype: str = "float32",
    experts: str = "auto",
) -> CheckedModel:
    """Open a model and plan it for one prompt; arguments and errors as of `check_model`.

    shape: (stages, shards).
    """
    stages, shards = shape
    source = in_staged_form(open_model(model, settings().cache_dir))
    arch = load_architecture(source.config)
    inputs = stack_inputs(arch, model_files(source), prompt, source.name)
    options = PlanOptions(
        source.name,
        source.name,
        dtype,
        num_slots=1,
        slot_tokens=max(len(ids) for ids in inputs),
        experts=experts,
    )
    plan = make_plan(arch, options, stages=stages, shards=shards)
    return CheckedModel(source, arch, plan, inputs)


def compare(
    checked: CheckedModel, progress: Progress | None = None, fetch: Fetch | None = None
) -> Report:
    """Run both sides.

    fetch: the source of the shards' weights; the checkpoint by default.
    """
    source, arch, inputs = checked.source, checked.arch, checked.inputs
    report, weights = _new_report(checked), CheckpointFetch(source, arch)
    report.bad_numbers = bad_tensors(source, tensor_plans(source, arch))
    if report.bad_numbers:
        report.peak_bytes = _peak_bytes()
        return report
    stacks = stacks_of(arch, inputs)
    num_places = arch.total_layers + 2 * len(stacks)  # an embedding and an output of each stack

    def add(place: Place) -> None:
        report.places.append(place)
        if progress is not None:
            done = weights.num_bytes * len(report.places) // num_places
            progress("checking", done, weights.num_bytes)

    kind = BackendShards if isinstance(arch, TransformersArchitecture) else SkynetShards
    shards = kind(arch, checked.plan, fetch or weights, stacks)
    question = question_of(arch, model_files(source), inputs[-1])
    comparison = Comparison(shards, question, add)
    reference = Reference(source.original, arch, DTYPES[checked.plan.dtype], comparison.cuts)
    reference.run(inputs, comparison)
    report.answer, report.peak_bytes = comparison.answer, _peak_bytes()
    return report


def _new_report(checked: CheckedModel) -> Report:
    """A report without places."""
    from importlib.metadata import version

    (stages, shards), num_tokens = checked.plan.shape, len(checked.inputs[0])
    return Report(
        model=checked.source.name,
        model_type=checked.arch.model_type,
        stages=stages,
        shards=shards,
        dtype=checked.plan.dtype,
        limit=LIMITS[checked.plan.dtype],
        versions=f"Transformers {version('transformers')}, torch {version('torch')}",
        num_tokens=num_tokens,
        notes=_notes(checked.arch, checked.plan.dtype, num_tokens),
    )


def _notes(arch: Architecture, dtype: str, num_tokens: int) -> list[str]:
    """Limitations of the comparison."""
    notes = (
        [f"{arch.notice}; compared with the same layers uncut"]
        if isinstance(arch, TransformersArchitecture)
        else []
    )
    reaches = f"the prompt has {num_tokens}; a longer --prompt reaches"
    sizes = (each.size if isinstance(each, Chunk) else each for each in arch.windows)
    windows = [size for size in sizes if size is not None]
    # An encoder's window is the distance that a token sees, not a number of tokens.
    if windows and min(windows) + arch.bidirectional >= num_tokens:
        notes.append(f"not tested: the end of windows of {min(windows)} tokens; {reaches} it")
    if arch.relative and arch.relative.max_distance >= num_tokens:
        notes.append(
            f"not tested: relative positions at distances of {num_tokens} to "
            f"{arch.relative.max_distance} tokens; {reaches} them"
        )
    if arch.num_experts and dtype != "float32":
        notes.append(
            f"in {dtype}, rounding may choose other experts where router logits are nearly equal, "
            "which looks like a mistake; --dtype float32 tells"
        )
    return notes


def _peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
