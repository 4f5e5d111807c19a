"""A checkpoint with NaN in the embedding of one token, on real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import letters, make_tiny
from safetensors.torch import load_file, save_file

from skynet.errors import NotFinite
from skynet.local.cluster import LocalCluster
from skynet.store.connection import connect
from skynet.store.plans import Plans

pytestmark = pytest.mark.cluster

EMBED = "model.embed_tokens.weight"


def test_requests_with_the_token_end_and_all_others_go_on(tmp_path: Path) -> None:
    # Given a token that no healthy request meets, broken in the file, on 1 stage x 2 shards
    tiny = make_tiny(tmp_path)
    met = {token for tokens in [*tiny.prompts, *tiny.tokens] for token in tokens}
    bad = max(set(range(131)) - met)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[EMBED][bad, 5] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with LocalCluster(tiny.path, 1, 2, "float32", num_slots=4) as running:
        plans = Plans(connect(running.url))
        before = plans.current()
        # When requests with and without it are answered together, twice in the same slots
        for _ in range(2):
            healthy = [
                running.submit_prompt(prompt, max_tokens=len(tokens), logprobs=1)
                for prompt, tokens in zip(tiny.prompts, tiny.tokens, strict=True)
            ]
            broken = running.submit_prompt([7, 9, bad, 3], max_tokens=4)
            beams = running.submit_prompt([bad], max_tokens=4, num_beams=2)
            # Then those with it end with an error that names the place
            for request in (broken, beams):
                with pytest.raises(NotFinite, match=rf"^stage0\.shard1: .* at token {bad} at "):
                    request.get(timeout=60)
            # And the others are answered as by Transformers
            answers = [request.get(timeout=60) for request in healthy]
            assert [a.text for a in answers] == [letters(tokens) for tokens in tiny.tokens]
        # And the cluster runs the same plan
        assert plans.current() == before
        # And the weights are found bad
        command = [sys.executable, "-m", "skynet.cli", "models", "verify", "--json"]
        environment = {**os.environ, "SKYNET_REDIS_URL": running.url}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 1
    (bad_numbers,) = json.loads(done.stdout)["bad_numbers"].values()
    assert bad_numbers == {EMBED: 1}
