"""The turns of a chat, from slots that hold the turns before: the answers of Transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import cluster_of
from references import OUTGROWN, PROMPTS, Reference, eager_experts
from test_engine_parity import InProcess
from test_parity import ALL_EXPERTS, ROPE
from transformers import AutoConfig, AutoModelForCausalLM

from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence
from skynet.request.record import Options, Record
from skynet.tokenizer.text import Text

FIRST = tuple(PROMPTS[2])
NEW = 12
SHAPES = [(1, 1), (2, 2)]
# One of each kind of positions, cache and layer; the last two on the Transformers backend.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope": ("llama", {}),
    "dynamic rope": ("llama", {"rope_parameters": ROPE["dynamic"], "max_position_embeddings": 64}),
    "rope that is switched": ("phi3", OUTGROWN),
    "learned positions": ("gpt2", {}),
    "alibi": ("bloom", {}),
    "windows": ("gemma2", {"sliding_window": 7}),
    "window of all layers": ("mistral", {"sliding_window": 7}),
    "experts": ("qwen3_moe", ALL_EXPERTS["qwen3_moe"]),
    # Of whole 16 bytes: Transformers' grouped kernel takes no other transposed experts.
    "sinks": ("gpt_oss", {"intermediate_size": 36, **ALL_EXPERTS["gpt_oss"]}),
    "chunks": ("llama4_text", {"intermediate_size": 36, **ALL_EXPERTS["llama4_text"]}),
    "Transformers backend": ("glm", {}),
    "Transformers backend, windows": ("olmo3", {"sliding_window": 7}),
}


class Asked:
    """An engine over the layers of a tiny model, in one process."""

    def __init__(self, model_reference: Reference, stages: int, shards: int) -> None:
        self.reference = model_reference
        self.cluster = cluster_of(model_reference.checkpoint, stages, shards, num_slots=3)
        self.carrier = InProcess(self.cluster)
        self.engine = Engine(
            self.cluster.plan, self.carrier, self.carrier, EngineOptions(max_batch_tokens=9)
        )
        self.engine.ready = True

    def ask(self, *prompts: tuple[int, ...]) -> tuple[list[list[int]], list[int]]:
        """The answers to prompts at the same time, and how much of each was cached."""
        model = ModelInfo(self.reference.checkpoint.arch, Text({}), frozenset(), 128)
        records = [
            Record(f"{len(self.carrier.ended)}.{at}", prompt, Options(max_tokens=NEW), 0.0, 1e12)
            for at, prompt in enumerate(prompts)
        ]
        sequences = [Sequence.of(record, model) for record in records]
        for sequence in sequences:
            self.engine.accept(sequence)
        while self.engine.in_flight:
            self.carrier.deliver(self.engine)
        answers = [self.carrier.answers[record.id] for record in records]
        return answers, [sequence.cached_tokens for sequence in sequences]


@cache
def expected(directory: Path, prompt: tuple[int, ...]) -> list[int]:
    """The answer of Transformers, from a new model: a dynamic rope remembers."""
    eager = eager_experts(AutoConfig.from_pretrained(directory))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32", **eager)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        tokens = model.eval().generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
        )
    return list(tokens[0, len(prompt) :].tolist())


@pytest.mark.parametrize(("stages", "shards"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_later_turns_have_the_answers_of_transformers(
    reference: Callable[..., Reference], kind: str, stages: int, shards: int
) -> None:
    # Given a first turn
    family, fields = KINDS[kind]
    asked = Asked(reference(family, **fields), stages, shards)
    try:
        (first,), _ = asked.ask(FIRST)
        # When the second one comes at the same time as another chat that begins alike
        second = (*FIRST, *first, 9, 8, 7)
        other = (*FIRST[:20], 3, 1)
        answers, cached = asked.ask(second, other)
        # Then the answers are those of Transformers, and old tokens were not computed
        assert [first, *answers] == [
            expected(asked.reference.path, prompt) for prompt in (FIRST, second, other)
        ]
        if kind == "rope that is switched":  # all are beyond the switch, at different prompts
            assert cached[0] > 0
        else:
            assert cached == [len(FIRST) + NEW - 1, 20]
    finally:
        asked.cluster.close()
