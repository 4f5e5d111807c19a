"""Whole experts in each shard: the answers of Transformers, as with experts cut by columns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness import Request, cluster_of, generate, last_logits
from references import NEW_TOKENS, PROMPTS, Reference

from skynet.check import check_model


@pytest.mark.parametrize(("stages", "shards", "span"), [(1, 2, 99), (2, 3, 1), (1, 5, 99)])
@pytest.mark.parametrize("family", ["deepseek_v3", "mixtral", "qwen3_moe", "gpt_oss"])
def test_whole_experts_answer_as_transformers(
    reference: Callable[..., Reference], family: str, stages: int, shards: int, span: int
) -> None:
    # Given a mixture whose shards have whole experts
    model = reference(family)
    cluster = cluster_of(model.checkpoint, stages, shards, experts="whole")
    assert all(part.experts for stage in cluster.plan.stages for part in stage.shards)
    # When prompts are computed alone, and together in chunks
    try:
        logits = [last_logits(cluster, model.checkpoint.arch, prompt, span) for prompt in PROMPTS]
        requests = [Request(prompt, slot=slot) for slot, prompt in enumerate(PROMPTS)]
        tokens = generate(cluster, requests, NEW_TOKENS, span, chunk=5)
    finally:
        cluster.close()
    # Then logits and tokens are those of Transformers
    for ours, theirs in zip(logits, model.logits, strict=True):
        assert abs(ours - theirs).max() < 1e-4
    assert tokens == model.tokens


def test_a_check_compares_whole_experts(reference: Callable[..., Reference]) -> None:
    report = check_model(str(reference("mixtral").path), 2, 2, experts="whole")
    assert report.equal
