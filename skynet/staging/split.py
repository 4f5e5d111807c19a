"""skysplit: stages a checkpoint in Redis and asks for a plan."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import stored_weights
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.model_source import ModelSource
from skynet.checkpoint.staged_form import in_staged_form
from skynet.checkpoint.tensor_plans import TensorPlan, model_files, tensor_plans
from skynet.errors import PlanError
from skynet.models.registry import load_architecture
from skynet.planning.auto_dtype import AUTO, cpu_dtype, gpu_dtype
from skynet.planning.memory import stays_float32
from skynet.planning.plan import Plan, number_dtype
from skynet.planning.split import DTYPE_BYTES, NUMBER_BYTES, PlanOptions, make_plan
from skynet.request.generation_config import FILE, generation_defaults
from skynet.settings import settings
from skynet.staging.stager import Progress, Stager, stage_checkpoint
from skynet.store.connection import connect, ping, reachable
from skynet.store.targets import Target, Targets
from skynet.transformers_backend.opening import open_model
from skynet.wire.tensor_dtypes import block_format

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitOptions:
    """Options of `skysplit` that decide the plan.

    dtype, kv_dtype, weights, keep_embeddings, experts: see `skysplit`.
    """

    stages: int = 1
    shards: int = 1
    dtype: str = AUTO
    chord_span: str = "auto"
    num_slots: int = 16
    slot_tokens: int | None = None
    kv_dtype: str | None = None
    weights: str | None = None
    keep_embeddings: bool = False
    experts: str = "auto"


def skysplit(
    model: str,
    stages: int | None = 1,
    shards: int | None = 2,
    *,
    fixed: bool = False,
    dtype: str = AUTO,
    chord_span: str = "auto",
    num_slots: int = 16,
    slot_tokens: int | None = None,
    kv_dtype: str | None = None,
    weights: str | None = None,
    keep_embeddings: bool = False,
    experts: str = "auto",
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
        or "bfloat16". "auto" is float32, and bfloat16 for bfloat16 weights if all workers are GPUs.
        "int8" is float32 but for the activations that quantised weights multiply, which are rounded
        to int8. Weights stay bfloat16 or float16 in memory where the checkpoint has them so.
    kv_dtype: of keys and values: "float32", "bfloat16" or "q8"; by default `dtype`, or float32.
    slot_tokens: longest prompt and answer together; by default the model's positions, up to 4,096.
    weights: "q8" or "q4" quantises the matrices while they are staged, and "bf16" rounds them to
        bfloat16; by default they stay as the checkpoint has them.
    keep_embeddings: `weights` does not apply to the embedding and the head.
    experts: of a mixture of experts a shard has its "columns" of every expert, or some experts
        "whole"; "auto": what takes less time for a token.

    Returns the plan of that shape (1x1 if both are None), without workers, for CPUs.

    Raises:
        CheckpointError, UnsupportedModel, PlanError: nothing was written.
        ClusterUnreachable: Redis does not answer, or takes no writes.
    """
    if (stages is None) != (shards is None):
        raise PlanError(f"stages={stages}, shards={shards}: give both, or neither")
    options = SplitOptions(
        stages or 1,
        shards or 1,
        dtype,
        chord_span,
        num_slots,
        slot_tokens,
        kv_dtype,
        weights,
        keep_embeddings,
        experts,
    )
    source = open_source(model, options)
    draft = draft_plan(source, options, progress)
    ping(url)
    with reachable(url):
        client = connect(url)
        stage_checkpoint(client, source, draft.model, progress)
        on_gpus = gpu_dtype(dtype, draft)
        target = Target.of(
            draft, fixed, any_shape=stages is None, gpu_dtype=on_gpus, experts=experts
        )
        Targets(client).ask(target)
    return draft


def open_source(model: str, options: SplitOptions) -> ModelSource:
    """The checkpoint `model`, with its weights in the form that the options ask for."""
    checkpoint = open_model(model, settings().cache_dir)
    return in_staged_form(checkpoint, options.weights, options.keep_embeddings)


def stay_staged(
    model: str,
    options: SplitOptions,
    stop: threading.Event,
    url: str | None = None,
    *,
    lean: bool = False,
) -> None:
    """Until `stop`: stage a model and ask for its plan again whenever Redis loses them.

    lean: let Redis drop the weights that all workers have on disk, and stage them on demand.
    """
    source = open_source(model, options)
    targets = Targets(connect(url))
    with reachable(url):
        target = targets.require()
    redis_url = url or settings().redis_url
    stager = Stager(redis_url, source, lambda: targets.restore(target), lean=lean)
    stager.watch(stop)


def draft_plan(
    source: ModelSource, options: SplitOptions, progress: Progress | None = None
) -> Plan:
    """The plan, after all checks of the model and the options; not yet in force.

    progress: of the self-test of a model on the Transformers backend.
    """
    arch = load_architecture(source.config)
    if source.original.is_inside:
        logger.warning("%s: only its language model runs: it takes text alone", source.name)
    dtype = cpu_dtype(options.dtype)
    weight_dtype = narrowest(tensor_plans(source, arch), arch, dtype)
    if isinstance(arch, TransformersArchitecture):
        from skynet.transformers_backend.self_test import self_test  # imports Transformers

        logger.warning("%s", arch.notice)
        self_test(source.original, arch, options.shards, progress)
    _check_beams(source, options.num_slots)
    named = PlanOptions(
        source.digest(),
        source.name,
        dtype,
        weight_dtype,
        options.chord_span,
        options.num_slots,
        options.slot_tokens,
        options.kv_dtype,
        options.experts,
    )
    return make_plan(arch, named, stages=options.stages, shards=options.shards)


def narrowest(tensors: Mapping[str, TensorPlan], arch: Architecture, dtype: str) -> str:
    """The dtype for weights in memory: a 16-bit one if that loses nothing, else that of numbers.

    Under a float32 `dtype` that is the dtype of all matrices, if they have the same. Not asked are
    those that are float32 in memory in any case, as routers are, norms, biases and the products
    after an embedding's pooling. Quantised ones stay so.

    tensors: by canonical name.
    """
    float32 = {name for _, weight, name in stored_weights(arch) if stays_float32(weight)}
    float32 |= {weight.tensor() for weight in arch.weights if weight.role in arch.dense_roles}
    stored = {
        tensor.dtype
        for name, tensor in tensors.items()
        if len(tensor.shape) > 1 and name not in float32 and block_format(tensor.dtype) is None
    }
    numbers = number_dtype(dtype)
    narrow = stored.pop() if len(stored) == 1 else numbers
    is_float32 = DTYPE_BYTES[numbers] == DTYPE_BYTES["float32"]
    return narrow if is_float32 and narrow in NUMBER_BYTES else numbers


def _check_beams(source: ModelSource, num_slots: int) -> None:
    """Refuse a plan with fewer slots than a request needs by the model's default num_beams."""
    num_beams = generation_defaults(model_files(source)).always.get("num_beams", 1)
    if isinstance(num_beams, int) and num_beams > num_slots:
        raise PlanError(
            f"num_slots {num_slots}: the model's {FILE} sets num_beams {num_beams}, and each beam "
            f"takes a slot; give {num_beams} slots or more"
        )
