"""Families whose layers make another number of sums than Llama's two."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import letters, make_tiny

from skynet.local.cluster import LocalCluster

pytestmark = pytest.mark.cluster

# One sum a layer; three, and one more at the end of each span.
FAMILIES = ["gpt_neox", "olmo2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    # Given a cluster of 2 stages x 2 shards, a chord for each layer
    tiny = make_tiny(tmp_path, family)
    with LocalCluster(tiny.path, 2, 2, "float32", "layer", num_slots=4) as running:
        # When all prompts are answered at once
        generations = [
            running.submit_prompt(prompt, max_tokens=len(tokens))
            for prompt, tokens in zip(tiny.prompts, tiny.tokens, strict=True)
        ]
        answers = [generation.get(timeout=60) for generation in generations]
    # Then they are those of Transformers
    assert [answer.text for answer in answers] == [letters(tokens) for tokens in tiny.tokens]
