"""Keys and values in fewer bits: near the float32 logits in every shape; copied and read back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from harness import Checkpoint, Cluster, cluster_of, full_logits
from references import PROMPTS, Reference

from skynet.planning.memory import slot_bytes
from skynet.wire.step import LogitsRequest, Row

STAGE, VOCABULARY = 99, LogitsRequest(top=0)


def logits_of(cluster: Cluster, row: Row) -> np.ndarray:
    return full_logits(cluster.step([row], STAGE)[0], cluster.arch.vocab_size)


@pytest.mark.parametrize(("stages", "shards"), [(1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize(("kv_dtype", "least"), [("bfloat16", 0.9995), ("q8", 0.999)])
@pytest.mark.parametrize(
    ("family", "backend"), [("llama", False), ("llama", True), ("youtu", False)]
)
def test_logits_are_near_those_of_float32(
    reference: Callable[..., Reference],
    kv_dtype: str,
    least: float,
    family: str,
    backend: bool,
    stages: int,
    shards: int,
) -> None:
    # Given a cluster with small keys and values, with SkyNet's layers or Transformers'
    model_reference = reference(family)
    checkpoint = Checkpoint(model_reference.path, transformers_backend=backend)
    cluster = cluster_of(checkpoint, stages, shards, kv_dtype=kv_dtype)
    # When a prompt is computed in two parts, and a copy of its slot continues as it does
    prompt, half = PROMPTS[0], len(PROMPTS[0]) // 2
    try:
        cluster.step([Row(0, 0, tuple(prompt[:half]), len(prompt))], STAGE)
        rest = tuple(prompt[half:])
        logits = logits_of(cluster, Row(0, half, rest, len(prompt), VOCABULARY))
        copied = logits_of(cluster, Row(3, half, rest, len(prompt), VOCABULARY, source=0))
        tokens = prompt[half:]
        for at, token in enumerate(tokens, start=half):  # one at a time, by the kernels
            row = Row(2, at, (token,), len(prompt), VOCABULARY, source=0 if at == half else None)
            singly = logits_of(cluster, row)
    finally:
        cluster.close()
    # Then the copy has the same bits, and all are near the float32 logits
    assert np.array_equal(logits, copied)
    expected = model_reference.logits[0]
    for each in (logits, singly):
        angle = each @ expected / np.linalg.norm(each) / np.linalg.norm(expected)
        assert angle > least


@pytest.mark.parametrize(
    ("family", "backend"), [("llama", False), ("llama", True), ("youtu", False)]
)
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "q8"])
def test_slots_take_the_memory_that_was_planned(
    reference: Callable[..., Reference], kv_dtype: str, family: str, backend: bool
) -> None:
    # Given a shard
    checkpoint = Checkpoint(reference(family).path, transformers_backend=backend)
    cluster = cluster_of(checkpoint, 1, 2, kv_dtype=kv_dtype)
    cluster.close()
    (model, _) = cluster.models[0]
    layers = model._stack._layers
    caches = [layer._cache if backend else layer.states[0] for layer in layers]
    # When / Then its caches are as large as forecast
    parts = [part for cache in caches for part in (cache.values, cache.scales) if part is not None]
    planned = slot_bytes(cluster.arch, cluster.plan, 0, 0)
    assert sum(part.nbytes for part in parts) == planned
