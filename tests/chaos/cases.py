"""The requests: random prompts and options, and Transformers' answers to the greedy ones."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path

from tests.chaos.case import Answer, Case

PARITY = Path(__file__).parents[1] / "parity"
NUM_GREEDY, NUM_SAMPLED, NUM_STOPPED, NUM_SEARCHED = 6, 4, 2, 2
MAX_SEARCHED = 60  # tokens of beam searches, which stream nothing until the end
LENGTHS = (8, 24, 60, 100, 150, 200)


def tiny_checkpoint(directory: Path) -> Path:
    """A tiny random Llama with room for long answers."""
    for path in (PARITY, PARITY.parent):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    make_tiny = importlib.import_module("checkpoints").make_tiny
    return Path(make_tiny(directory / "tiny", max_position_embeddings=2048).path)


def make_cases(chance: random.Random, vocab_size: int, max_tokens: int) -> list[Case]:
    """Greedy, sampled and beam search requests of many lengths, up to `max_tokens`."""

    def prompt() -> tuple[int, ...]:
        return tuple(chance.randrange(vocab_size) for _ in range(chance.randrange(1, 60)))

    lengths = [min(length, max_tokens) for length in LENGTHS]
    greedy = [Case(prompt(), lengths[i % len(lengths)]) for i in range(NUM_GREEDY)]
    sampled = [
        Case(
            prompt(),
            lengths[-1 - i % len(lengths)],
            temperature=chance.choice((0.7, 1.0, 1.3)),
            top_k=chance.choice((0, 20)),
            top_p=chance.choice((1.0, 0.9)),
            seed=chance.randrange(2**32),
        )
        for i in range(NUM_SAMPLED)
    ]
    searched = [
        Case(prompt(), min(lengths[-1 - i], MAX_SEARCHED), num_beams=2 + i)
        for i in range(NUM_SEARCHED)
    ]
    return greedy + sampled + searched


def stopped_cases(chance: random.Random, answers: dict[Case, Answer]) -> list[Case]:
    """Cases with a stop string, from the second half of a known answer."""
    cases: list[Case] = []
    for case, (_, text) in answers.items():
        half = text[len(text) // 2 :].strip()
        is_greedy = case.temperature == 0 and case.num_beams == 1
        if is_greedy and case.max_tokens >= 60 and len(half) > 1:
            start = chance.randrange(len(half) - 1)
            stop = (half[start : start + 2],)
            cases.append(Case(case.prompt, case.max_tokens, stop=stop))
    return cases[:NUM_STOPPED]


def greedy_answers(model: Path, cases: list[Case], rounded: bool) -> dict[Case, list[int]]:
    """Transformers' answers to cases without sampling, in one process, in float32.

    rounded: matrices to the nearest bfloat16 numbers.
    """
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for weight in loaded.parameters():
        if rounded and weight.dim() > 1:
            weight.data = weight.data.bfloat16().float()
    loaded.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=None)
    answers: dict[Case, list[int]] = {}
    for case in cases:
        if case.temperature == 0 and not case.stop:
            ids = torch.tensor([case.prompt])
            with torch.no_grad():
                answer = loaded.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=case.max_tokens,
                    num_beams=case.num_beams,
                )
            answers[case] = answer[0, len(case.prompt) :].tolist()
    return answers
