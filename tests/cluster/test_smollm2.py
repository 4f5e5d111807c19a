"""A real model: the text is Transformers', and workers hold their slice and little more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.unpacked import unpacked_directory
from skynet.local.cluster import LocalCluster
from skynet.settings import settings
from skynet.store.members import Members
from skynet.tokenizer.text import Text

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
NEW = 24
MB = 10**6
PROMPTS = [
    "Hello",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "Water boils at 100 degrees Celsius at sea level. On a high mountain the air is thinner, "
    "so the pressure is lower, and therefore water boils at a temperature that is",
]


@pytest.fixture(scope="module")
def expected(demo_checkpoint: Checkpoint) -> list[list[int]]:
    """What Transformers generates, in float32, greedily."""
    text = Text(demo_checkpoint.text_files())
    directory = unpacked_directory(demo_checkpoint, settings().cache_dir)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    answers = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = torch.tensor([text.encode(prompt)])
            mask = torch.ones_like(ids)
            answer = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
            answers.append(answer[0, ids.shape[1] :].tolist())
    return answers


@pytest.fixture(scope="module", params=[(2, 2), (1, 3)], ids=["2x2", "1x3"])
def smollm2(request: pytest.FixtureRequest, demo_checkpoint: Checkpoint) -> Iterator[LocalCluster]:
    with LocalCluster("smollm2", *request.param, "float32", slot_tokens=256) as running:
        yield running


def test_five_prompts_have_the_text_of_transformers(
    smollm2: LocalCluster, demo_checkpoint: Checkpoint, expected: list[list[int]]
) -> None:
    # Given prompts of five lengths / When all are asked at once
    generations = smollm2.submit_prompts(PROMPTS, max_tokens=NEW)
    completions = [generation.get(timeout=120) for generation in generations]
    # Then tokens and text are those of Transformers
    text = Text(demo_checkpoint.text_files())
    assert len({completion.prompt_tokens for completion in completions}) == 5
    for completion, tokens in zip(completions, expected, strict=True):
        assert completion.token_ids == tokens
        assert completion.text == text.decode(tokens)


def test_a_chat_is_answered_to_its_end(smollm2: LocalCluster) -> None:
    # Given a question as chat messages and as a text for the chat template
    question = "What is the capital of France? Answer in one short sentence."
    chat = [{"role": "user", "content": question}]
    # When both are asked
    first = smollm2.submit_prompt(chat, max_tokens=40)
    second = smollm2.submit_prompt(question, raw=False, max_tokens=40)
    # Then the answer is one, it ends by itself, and no special token is in its text
    completion = first.get(timeout=120)
    assert completion.token_ids == second.get(timeout=120).token_ids
    assert "Paris" in completion.text
    assert completion.finish_reason == "stop"
    assert "<|" not in completion.text
    assert "".join(first.stream()) == completion.text


def test_workers_hold_their_slice_and_the_orchestrator_none(smollm2: LocalCluster) -> None:
    # Given a cluster that has answered
    smollm2.submit_prompt(PROMPTS[0], max_tokens=2).get(timeout=60)
    members = {member.address: member for member in Members(smollm2.client.redis, 6).all()}
    for worker in smollm2.workers:
        resident = psutil.Process(worker.pid).memory_info().rss
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
        if worker.address == "orchestrator":
            # Then the orchestrator has neither weights nor torch
            assert members[worker.address].weight_bytes == 0
            assert "libtorch" not in mapped
            assert resident < 300 * MB
        else:
            # And a shard has its slice, and 450 MB at most for torch and Celery
            weights = members[worker.address].weight_bytes
            assert 25 * MB < weights < 100 * MB
            assert resident <= weights + 450 * MB, f"{worker.address}: {resident / MB:.0f} MB"
            assert members[worker.address].resident_bytes > weights
