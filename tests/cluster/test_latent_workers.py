"""Real workers that keep latents: an answer is Transformers' after a worker was killed."""

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


def test_a_model_of_latents_answers_the_same_after_a_kill(tmp_path: Path) -> None:
    # Given a model with latent attention and Transformers' answer
    tiny = make_tiny(tmp_path / "tiny", "youtu", max_position_embeddings=512)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32)
    ids = torch.tensor([tiny.prompts[0]])
    options = {"max_new_tokens": COUNT, "do_sample": False}
    answer = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    expected = answer[0, ids.shape[1] :].tolist()
    with LocalCluster(tiny.path, 1, 2, num_slots=4, elastic=True, spares=1) as cluster:
        # When it answers, and a worker is killed in the middle of the answer
        generation = cluster.submit_prompt(tiny.prompts[0], max_tokens=COUNT)
        next(generation.tokens(timeout=60))
        kill(cluster, worker_with_a_place(cluster))
        # Then the tokens are Transformers'
        assert generation.get(timeout=120).token_ids == expected
        wait_for("the cluster to run", lambda: engine_state(cluster).get("state") == "ready")
