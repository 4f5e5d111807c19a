"""skysplit: from a checkpoint to staged weights and a wish for a plan."""

from __future__ import annotations

import logging
import threading

from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.tensor_plans import model_files, tensor_plans
from skynet.errors import PlanError
from skynet.models.registry import checkpoint_dtype, load_architecture
from skynet.planning.plan import Plan
from skynet.planning.split import DTYPE_BYTES, PlanOptions, make_plan
from skynet.request.generation_config import FILE, generation_defaults
from skynet.settings import settings
from skynet.staging.stager import Progress, Stager, stage_checkpoint
from skynet.store.connection import connect, ping
from skynet.store.plans import Plans, Target
from skynet.transformers_backend.opening import open_model

logger = logging.getLogger(__name__)


def skysplit(
    model: str,
    stages: int | None = 1,
    shards: int | None = 2,
    *,
    fixed: bool = False,
    dtype: str | None = None,
    chord_span: str = "auto",
    num_slots: int = 16,
    slot_tokens: int | None = None,
    url: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Stage a model's weights in Redis and ask for it to be run in stages x shards.

    The leading orchestrator puts a plan of that shape in force as soon as there are members for
    it. When members are lost it falls back to a shape that those left can hold, and returns.
    Staging a checkpoint that is staged already writes nothing.

    model: a Hugging Face directory, a hub id, a .gguf file, or `smollm2`.
    stages, shards: None for both leaves the shape to the members that are there.
    fixed: never another shape; wait for members instead.
    dtype: what workers compute in, "float32" or "bfloat16"; the checkpoint's own by default.
    slot_tokens: longest prompt and answer together; by default the model's positions, 4,096 at
        most.

    Returns the layout of the shape asked for (1x1 if it is left open), without workers.

    Raises:
        CheckpointError, UnsupportedModel, PlanError: before anything is written.
        ClusterUnreachable: Redis does not answer.
    """
    if (stages is None) != (shards is None):
        raise PlanError(f"stages={stages}, shards={shards}: give both, or neither")
    checkpoint = open_model(model, settings().cache_dir)
    draft = draft_plan(
        checkpoint, stages or 1, shards or 1, dtype, chord_span, num_slots, slot_tokens, progress
    )
    ping(url)
    client = connect(url)
    stage_checkpoint(client, checkpoint, draft.model, progress)
    Plans(client).ask(Target.of(draft, fixed, any_shape=stages is None))
    return draft


def stay_staged(model: str, stop: threading.Event, url: str | None = None) -> None:
    """Until `stop`: stage a model again, and ask for it again, whenever Redis has lost it."""
    checkpoint = open_model(model, settings().cache_dir)
    plans = Plans(connect(url))
    target = plans.require_target()
    stager = Stager(url or settings().redis_url, checkpoint, lambda: plans.restore(target))
    stager.watch(stop)


def draft_plan(
    checkpoint: Checkpoint,
    stages: int,
    shards: int,
    dtype: str | None = None,
    chord_span: str = "auto",
    num_slots: int = 16,
    slot_tokens: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan, checked, not yet in force.

    progress: of the test that a family without a file has to pass.
    """
    arch = load_architecture(checkpoint.config)
    if dtype is None:
        own = checkpoint_dtype(checkpoint.config)
        dtype = own if own in DTYPE_BYTES else "float32"
    tensor_plans(checkpoint, arch)
    if isinstance(arch, TransformersArchitecture):
        from skynet.check.self_test import self_test  # with torch and Transformers

        logger.warning("%s", arch.notice)
        self_test(checkpoint, arch, shards, progress)
    _check_beams(checkpoint, num_slots)
    options = PlanOptions(
        model=checkpoint.digest(),
        name=checkpoint.name,
        dtype=dtype,
        chord_span=chord_span,
        num_slots=num_slots,
        slot_tokens=slot_tokens,
    )
    return make_plan(arch, options, stages=stages, shards=shards)


def _check_beams(checkpoint: Checkpoint, num_slots: int) -> None:
    """Refuse a plan in which a request that says nothing could not run."""
    own = generation_defaults(model_files(checkpoint)).always.get("num_beams", 1)
    if isinstance(own, int) and own > num_slots:
        raise PlanError(
            f"num_slots {num_slots}: the model's own {FILE} searches with num_beams {own}, each in "
            f"a slot; give {own} slots or more"
        )
