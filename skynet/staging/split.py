"""skysplit: stages a checkpoint in Redis and asks for a plan."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.tensor_plans import TensorPlan, model_files, tensor_plans
from skynet.errors import PlanError
from skynet.models.registry import load_architecture
from skynet.planning.plan import Plan
from skynet.planning.split import PlanOptions, make_plan
from skynet.request.generation_config import FILE, generation_defaults
from skynet.settings import settings
from skynet.staging.stager import Progress, Stager, stage_checkpoint
from skynet.store.connection import connect, ping, reachable
from skynet.store.targets import Target, Targets
from skynet.transformers_backend.opening import open_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitOptions:
    """Options of `skysplit` that decide the plan.

    dtype: what is computed in; kv_dtype: what keys and values are kept in, by default the same.
    """

    stages: int = 1
    shards: int = 1
    dtype: str = "float32"
    chord_span: str = "auto"
    num_slots: int = 16
    slot_tokens: int | None = None
    kv_dtype: str | None = None


def skysplit(
    model: str,
    stages: int | None = 1,
    shards: int | None = 2,
    *,
    fixed: bool = False,
    dtype: str = "float32",
    chord_span: str = "auto",
    num_slots: int = 16,
    slot_tokens: int | None = None,
    kv_dtype: str | None = None,
    url: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Stage a model's weights in Redis and ask for a plan of stages x shards.

    The leading orchestrator puts a plan of that shape in force as soon as there are members for
    it. When members are lost it falls back to a shape that fits the others, and returns when it
    can. If the checkpoint is staged already, nothing is written.

    model: a Hugging Face directory, a hub id, a .gguf file, or `smollm2`.
    stages, shards: None for both lets the orchestrator choose a shape for the live members.
    fixed: never another shape; wait for members instead.
    dtype: of activations and sums: "float32", which gives the answers of Transformers in float32,
        or "bfloat16". Weights stay bfloat16 in memory where the checkpoint has them so.
    kv_dtype: of keys and values: "float32", "bfloat16" or "q8"; by default `dtype`.
    slot_tokens: longest prompt and answer together; by default the model's positions, up to 4,096.

    Returns the plan of that shape (1x1 if both are None), without workers.

    Raises:
        CheckpointError, UnsupportedModel, PlanError: nothing was written.
        ClusterUnreachable: Redis does not answer, or takes no writes.
    """
    if (stages is None) != (shards is None):
        raise PlanError(f"stages={stages}, shards={shards}: give both, or neither")
    checkpoint = open_model(model, settings().cache_dir)
    options = SplitOptions(
        stages or 1, shards or 1, dtype, chord_span, num_slots, slot_tokens, kv_dtype
    )
    draft = draft_plan(checkpoint, options, progress)
    ping(url)
    with reachable(url):
        client = connect(url)
        stage_checkpoint(client, checkpoint, draft.model, progress)
        Targets(client).ask(Target.of(draft, fixed, any_shape=stages is None))
    return draft


def stay_staged(model: str, stop: threading.Event, url: str | None = None) -> None:
    """Until `stop`: stage a model and ask for its plan again whenever Redis loses them."""
    checkpoint = open_model(model, settings().cache_dir)
    targets = Targets(connect(url))
    with reachable(url):
        target = targets.require()
    stager = Stager(url or settings().redis_url, checkpoint, lambda: targets.restore(target))
    stager.watch(stop)


def draft_plan(
    checkpoint: Checkpoint, options: SplitOptions, progress: Progress | None = None
) -> Plan:
    """The plan, after all checks of checkpoint and options; not yet in force.

    progress: of the self-test of a model on the Transformers backend.
    """
    arch = load_architecture(checkpoint.config)
    weight_dtype = narrowest(tensor_plans(checkpoint, arch).values(), options.dtype)
    if isinstance(arch, TransformersArchitecture):
        from skynet.transformers_backend.self_test import self_test  # imports Transformers

        logger.warning("%s", arch.notice)
        self_test(checkpoint, arch, options.shards, progress)
    _check_beams(checkpoint, options.num_slots)
    named = PlanOptions(
        checkpoint.digest(),
        checkpoint.name,
        options.dtype,
        weight_dtype,
        options.chord_span,
        options.num_slots,
        options.slot_tokens,
        options.kv_dtype,
    )
    return make_plan(arch, named, stages=options.stages, shards=options.shards)


def narrowest(tensors: Iterable[TensorPlan], dtype: str) -> str:
    """The dtype for weights in memory: bfloat16 if that loses nothing, else `dtype`.

    Only matrices are asked: norms and biases are never bfloat16 in memory under a float32 `dtype`.
    """
    stored = {tensor.dtype for tensor in tensors if len(tensor.shape) > 1}
    return "bfloat16" if stored == {"bfloat16"} else dtype


def _check_beams(checkpoint: Checkpoint, num_slots: int) -> None:
    """Refuse a plan with fewer slots than a request needs by the model's default num_beams."""
    num_beams = generation_defaults(model_files(checkpoint)).always.get("num_beams", 1)
    if isinstance(num_beams, int) and num_beams > num_slots:
        raise PlanError(
            f"num_slots {num_slots}: the model's {FILE} sets num_beams {num_beams}, and each beam "
            f"takes a slot; give {num_beams} slots or more"
        )
