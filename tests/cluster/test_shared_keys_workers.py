"""Real workers whose stages share keys and values: Transformers' answer, also after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import make_tiny
from disturbed import engine_state, kill, worker_with_a_place
from processes import wait_for

from skynet.local.cluster import LocalCluster
from skynet.models.registry import load_architecture
from skynet.planning.carried import copies
from skynet.store.plans import Plans

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

COUNT = 400


def test_stages_that_share_keys_answer_the_same_after_a_kill(tmp_path: Path) -> None:
    # Given a model whose last layers take keys and values of the first, and Transformers' answer
    tiny = make_tiny(tmp_path, "gemma4_text", max_position_embeddings=1024)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([tiny.prompts[0]])
    options = {"max_new_tokens": COUNT, "do_sample": False}
    answer = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    expected = answer[0, ids.shape[1] :].tolist()
    arch = load_architecture(reference.config.to_dict())
    with LocalCluster(tmp_path, 2, 1, num_slots=4, elastic=True, spares=1) as cluster:
        plan = Plans(cluster.client.redis).current()
        assert plan is not None
        assert [len(copies(arch, stage.layers)) for stage in plan.stages] == [0, 2]
        # When it answers, and a worker is killed in the middle of the answer
        generation = cluster.submit_prompt(tiny.prompts[0], max_tokens=COUNT)
        next(generation.tokens(timeout=60))
        kill(cluster, worker_with_a_place(cluster))
        # Then the tokens are Transformers'
        assert generation.get(timeout=120).token_ids == expected
        wait_for("the cluster to run", lambda: engine_state(cluster).get("state") == "ready")
