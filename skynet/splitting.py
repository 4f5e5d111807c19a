"""skysplit: from a checkpoint to a plan in force, with its weights staged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models import (
    Architecture,
    checkpoint_dtype,
    load_architecture,
    resolve_names,
    staged_tensors,
)
from skynet.models.checkpoint import Checkpoint, open_checkpoint
from skynet.planning.plan import Plan
from skynet.planning.split import DTYPE_BYTES, make_plan
from skynet.settings import settings
from skynet.store.connection import connect, ping
from skynet.store.plans import Plans
from skynet.store.weights import ITEM_BYTES, TensorPlan, WeightStore

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


def skysplit(
    model: str,
    stages: int = 1,
    shards: int = 2,
    *,
    dtype: str | None = None,
    chord_span: str = "auto",
    num_slots: int = 16,
    slot_tokens: int | None = None,
    url: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Plan a model over stages x shards, stage its weights in Redis and put the plan in force.

    Workers that wait at the plan's addresses load their slices then. Staging a checkpoint that is
    staged already writes nothing.

    model: a Hugging Face directory, a hub id, a .gguf file, or `smollm2`.
    dtype: what workers compute in, "float32" or "bfloat16"; the checkpoint's own by default.
    slot_tokens: longest prompt and answer together; by default the model's positions, 4,096 at
        most.

    Raises:
        CheckpointError, UnsupportedModel, PlanError: before anything is written.
        ClusterUnreachable: Redis does not answer.
    """
    checkpoint = open_checkpoint(model, settings().cache_dir)
    draft = draft_plan(checkpoint, stages, shards, dtype, chord_span, num_slots, slot_tokens)
    ping(url)
    client = connect(url)
    stage_checkpoint(client, checkpoint, draft.model, progress)
    return Plans(client).publish(draft)


def draft_plan(
    checkpoint: Checkpoint,
    stages: int,
    shards: int,
    dtype: str | None = None,
    chord_span: str = "auto",
    num_slots: int = 16,
    slot_tokens: int | None = None,
) -> Plan:
    """The plan, checked, not yet in force."""
    arch = load_architecture(checkpoint.config)
    if dtype is None:
        own = checkpoint_dtype(checkpoint.config)
        dtype = own if own in DTYPE_BYTES else "float32"
    _tensor_plans(checkpoint, arch)
    return make_plan(
        arch,
        model=checkpoint.digest(),
        name=checkpoint.name,
        stages=stages,
        shards=shards,
        dtype=dtype,
        chord_span=chord_span,
        num_slots=num_slots,
        slot_tokens=slot_tokens,
    )


def stage_checkpoint(
    client: redis.Redis, checkpoint: Checkpoint, digest: str, progress: Progress | None = None
) -> None:
    """Put the checkpoint's tensors, config and text files into Redis, in tiles."""
    arch = load_architecture(checkpoint.config)
    tensors = _tensor_plans(checkpoint, arch)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress("staging", min(done, total), total)

    WeightStore(client).stage(
        digest,
        checkpoint.name,
        checkpoint.config,
        tensors,
        checkpoint.text_files(),
        checkpoint,
        tile_bytes=settings().tile_bytes,
        progress=advance,
    )


def _tensor_plans(checkpoint: Checkpoint, arch: Architecture) -> dict[str, TensorPlan]:
    """How each tensor that the model needs is cut; checks shapes and dtypes."""
    names: dict[str, str] = resolve_names(arch, checkpoint.tensors)
    plans = {}
    for wanted in staged_tensors(arch):
        source_name = names[wanted.name]
        found: Any = checkpoint.tensors[source_name]
        if tuple(found.shape) != tuple(wanted.shape):
            raise CheckpointError(
                f"tensor {source_name} has shape {list(found.shape)}, the config says "
                f"{list(wanted.shape)}: config.json and the weights do not belong together"
            )
        if found.dtype not in ITEM_BYTES:
            raise UnsupportedModel(
                f"tensor {source_name} is {found.dtype}; known are {', '.join(ITEM_BYTES)}. "
                "Quantised checkpoints are not read"
            )
        plans[wanted.name] = TensorPlan(source_name, wanted.shape, found.dtype, wanted.axis)
    return plans
