"""Requests of models with recurrent state: samples, and what is computed again after losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from references import PROMPTS, Reference
from test_generation_options import options_of
from test_generation_options import record_of as sample_of
from test_generation_options import run as run_samples
from test_prompt_logprobs import NEW, check, record_of, run

FAMILIES = ["qwen3_5_text", "olmo_hybrid", "bamba", "falcon_h1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_as_if_they_were_alone(
    reference: Callable[..., Reference], family: str
) -> None:
    # Given three samples of a prompt, and each alone
    model_reference, prompt = reference(family), PROMPTS[2]
    sampled = [options_of({}, temperature=1.0, seed=seed) for seed in range(3)]
    alone = [
        run_samples(model_reference, (1, 2), [sample_of("0", prompt, options)]).answers["0"]
        for options in sampled
    ]
    assert len({tuple(tokens) for tokens in alone}) == 3
    # When they are answered together
    records = [sample_of(str(n), prompt, options, "0") for n, options in enumerate(sampled)]
    carrier = run_samples(model_reference, (2, 3), records)
    # Then each is as if it were alone
    assert [carrier.answers[str(number)] for number in range(3)] == alone


@pytest.mark.parametrize("disturb_at", [0, 2, 4, 6])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same_after_the_shards_lose_everything(
    reference: Callable[..., Reference], family: str, disturb_at: int
) -> None:
    # Given a prompt of three chunks, with an answer
    model_reference, prompt = reference(family), PROMPTS[2]
    # When shards lose everything before one of its steps
    records = [record_of("0", prompt)]
    carrier = run(model_reference.checkpoint, (1, 2), records, disturb_at=disturb_at)
    # Then scores and tokens are those of Transformers
    check(carrier.scores["0"], model_reference.path, prompt)
    assert carrier.answers["0"] == model_reference.tokens[2][:NEW]
