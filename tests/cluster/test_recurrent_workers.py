"""Real workers of a model with recurrent state: the same answers before and after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import make_tiny
from disturbed import engine_state, kill, worker_with_a_place
from processes import wait_for

from skynet.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

COUNT = 200


def test_a_delta_net_answers_the_same_after_a_kill(tmp_path: Path) -> None:
    # Given a model whose state is that of delta nets and of attention, and Transformers' answer
    tiny = make_tiny(tmp_path, "qwen3_5_text", max_position_embeddings=1024)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([tiny.prompts[0]])
    options = {"max_new_tokens": COUNT, "do_sample": False}
    answer = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    expected = answer[0, ids.shape[1] :].tolist()
    beams = {"num_beams": 3, "max_tokens": COUNT}
    with LocalCluster(tmp_path, 1, 2, num_slots=8, elastic=True, spares=1) as cluster:
        searched = cluster.submit_prompt(tiny.prompts[1], **beams).get(timeout=90).token_ids
        # When a worker is killed in the middle of an answer, and of a beam search
        generation = cluster.submit_prompt(tiny.prompts[0], max_tokens=COUNT)
        search = cluster.submit_prompt(tiny.prompts[1], **beams)
        next(generation.tokens(timeout=60))
        kill(cluster, worker_with_a_place(cluster))
        # Then the answers are those without a kill
        assert generation.get(timeout=120).token_ids == expected
        assert search.get(timeout=120).token_ids == searched
        wait_for("the cluster to run", lambda: engine_state(cluster).get("state") == "ready")
