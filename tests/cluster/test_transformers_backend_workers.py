"""A model on the Transformers backend, on a cluster of real workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import letters, make_tiny

from skynet.client.status import cluster_status
from skynet.local.cluster import LocalCluster

pytestmark = pytest.mark.cluster


def test_answers_are_those_of_transformers(tmp_path: Path) -> None:
    # Given a cluster of 2 stages x 2 shards, a chord for each layer, whose sums are three a layer
    tiny = make_tiny(tmp_path, "glm")
    with LocalCluster(tiny.path, 2, 2, "float32", "layer", num_slots=4) as running:
        # When all prompts are answered at once
        generations = [
            running.submit_prompt(prompt, max_tokens=len(tokens))
            for prompt, tokens in zip(tiny.prompts, tiny.tokens, strict=True)
        ]
        answers = [generation.get(timeout=60) for generation in generations]
        status = cluster_status(running.client.redis, running.url)
        logs = [worker.log.read_text() for worker in running.workers]
    # Then they are those of Transformers
    assert [answer.text for answer in answers] == [letters(tokens) for tokens in tiny.tokens]
    # And status and the workers' logs say what runs
    notice = "model_type 'glm' has no file: running Transformers' layers"
    assert any(notice in event["text"] for event in status["events"])
    assert sum(notice in log for log in logs) == 4
