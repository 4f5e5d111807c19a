"""Keys and values that layers share, and other things that hidden states carry between stages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from harness import Request, cluster_of, full_logits, generate, last_logits
from references import NEW_TOKENS, PROMPTS, Reference

from skynet.planning.carried import carried, copies
from skynet.planning.memory import slot_bytes
from skynet.planning.ranges import Range
from skynet.wire.step import LogitsRequest, Row


def test_stages_are_cut_at_any_layer(reference: Callable[..., Reference]) -> None:
    # Given a model whose layers 2 and 3 take the keys and values of 0 and 1
    model_reference = reference("gemma4_text")
    arch, prompt = model_reference.checkpoint.arch, PROMPTS[0]
    # When each of four stages has one layer, whose shards have other heads than the next one's
    weights = [[1, 3], [3, 1], [1, 1], [1, 3]]
    cluster = cluster_of(model_reference.checkpoint, 4, 2, weights=weights)
    try:
        logits = last_logits(cluster, arch, prompt, 1)
        tokens = generate(cluster, [Request(prompt)], NEW_TOKENS, 1, chunk=5)
    finally:
        cluster.close()
    # Then those pass through the stages between
    stages = [stage.layers for stage in cluster.plan.stages]
    assert [copies(arch, stage) for stage in stages] == [set(), set(), {0}, {1}]
    sources = [[layer for layer, _ in carried(arch, stages, at).sources] for at in range(4)]
    assert sources == [[], [0], [0, 1], [1]]
    np.testing.assert_allclose(logits, model_reference.logits[0], atol=1e-4, rtol=0)
    assert tokens == model_reference.tokens[:1]


@pytest.mark.parametrize("stages", [1, 2])
def test_a_slot_is_continued_with_the_copies(
    reference: Callable[..., Reference], stages: int
) -> None:
    # Given a prompt in a slot
    model_reference = reference("gemma4_text")
    arch, prompt = model_reference.checkpoint.arch, PROMPTS[2]
    cluster = cluster_of(model_reference.checkpoint, stages, 2)
    try:
        last_logits(cluster, arch, prompt, 99)
        # When another slot continues after its first tokens
        row = Row(3, 10, tuple(prompt[10:]), len(prompt), LogitsRequest(top=0), source=0)
        candidates = cluster.step([row], 99)[0]
    finally:
        cluster.close()
    # Then its logits are those of the whole prompt
    logits = full_logits(candidates, arch.vocab_size)
    np.testing.assert_allclose(logits, model_reference.logits[2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "q8"])
def test_copies_in_other_dtypes_are_those_of_the_source(
    reference: Callable[..., Reference], kv_dtype: str
) -> None:
    # Given one stage, and two of which the second has copies of rounded keys and values
    model_reference = reference("gemma4_text")
    made = []
    for stages in (1, 2):
        cluster = cluster_of(model_reference.checkpoint, stages, 1, kv_dtype=kv_dtype)
        try:
            made.append(last_logits(cluster, model_reference.checkpoint.arch, PROMPTS[0], 99))
        finally:
            cluster.close()
    # Then the stages change nothing: what was rounded is not rounded again
    np.testing.assert_allclose(made[0], made[1], atol=1e-4, rtol=0)


def test_the_forecast_counts_copies_once_for_a_stage(reference: Callable[..., Reference]) -> None:
    # Given stages of which the second keeps copies
    model_reference = reference("gemma4_text")
    arch = model_reference.checkpoint.arch
    cluster = cluster_of(model_reference.checkpoint, 2, 2)
    try:
        # When / Then the forecast is the memory of all caches
        for stage, models in enumerate(cluster.models):
            for shard, model in enumerate(models):
                assert model._stack is not None
                caches = list(model._stack.shared.copies.values())
                caches += [state for layer in model._stack._layers for state in layer.states]
                made = sum(cache.values.nbytes for cache in caches)
                assert made == slot_bytes(arch, cluster.plan, stage, shard)
    finally:
        cluster.close()
    assert copies(arch, Range(2, 4)) == {0, 1}
