"""Real workers with q4 weights: their answers are Transformers', before and after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import make_tiny
from disturbed import engine_state, kill, worker_with_a_place
from processes import wait_for
from quantised_models import QuantisedModel

from skynet.local.cluster import LocalCluster
from skynet.store.plans import Plans

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

COUNT = 400


def test_a_q4_model_answers_the_same_after_a_kill(tmp_path: Path) -> None:
    # Given a model that is quantised as it is staged, and Transformers' answer with its numbers
    path = tmp_path / "tiny"
    tiny = make_tiny(path, max_position_embeddings=1024, intermediate_size=96)
    plain = QuantisedModel(path, "q4").dequantised(path, tmp_path / "plain")
    reference = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    ids = torch.tensor([tiny.prompts[0]])
    options = {"max_new_tokens": COUNT, "do_sample": False}
    answer = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    expected = answer[0, ids.shape[1] :].tolist()
    with LocalCluster(path, 1, 2, num_slots=4, weights="q4", elastic=True, spares=1) as cluster:
        plan = Plans(cluster.client.redis).current()
        assert plan is not None
        assert plan.quantisation == "q4"
        # When it answers, and a worker is killed in the middle of the answer
        generation = cluster.submit_prompt(tiny.prompts[0], max_tokens=COUNT)
        next(generation.tokens(timeout=60))
        kill(cluster, worker_with_a_place(cluster))
        # Then the tokens are Transformers'
        assert generation.get(timeout=120).token_ids == expected
        wait_for("the cluster to run", lambda: engine_state(cluster).get("state") == "ready")
